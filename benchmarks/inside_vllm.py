"""Tokens a second, time to first token, and sequences at once inside vLLM: as it ships, and with profiles, in the same memory.

Run it with the Python of `make test-vllm`, on a model in Hugging Face format (tools/gguf_to_hf.py). Each cache is a process of
its own, one after another on the same cores:

    .venv-vllm/bin/python benchmarks/inside_vllm.py DIRECTORY --json inside-vllm.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STOCK: dict[str, dict[str, Any]] = {"stock": {}, "stock fp8": {"kv_cache_dtype": "fp8"}}
MARK = "RESULT "


def measure(model: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """In this process: one cache's row. Seconds are of whole calls, prompts in random tokens without a common beginning."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import torch
    from vllm import LLM, SamplingParams

    torch.set_num_threads(options.threads)
    settings: dict[str, Any] = STOCK.get(name, {"additional_config": {"stratakv_profile": name}})
    llm = LLM(
        model,
        dtype=options.dtype,
        enforce_eager=True,
        max_model_len=options.far + 64,
        max_num_seqs=64,
        max_num_batched_tokens=2048,
        kv_cache_memory_bytes=options.mib * 2**20,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        **settings,
    )
    generator = torch.Generator().manual_seed(1)

    def seconds(count: int, prompt: int, tokens: int) -> float:
        asked: list[Any] = [
            {"prompt_token_ids": torch.randint(100, 2000, (prompt,), generator=generator).tolist()}
            for _ in range(count)
        ]
        one = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        llm.generate(asked, one, use_tqdm=False)
        return time.perf_counter() - start

    seconds(2, 64, 4)  # first calls take longer
    first = seconds(options.sequences, options.prompt, 1)
    whole = seconds(options.sequences, options.prompt, options.tokens)
    row: dict[str, Any] = {
        "cache": name,
        "blocks": llm.llm_engine.vllm_config.cache_config.num_gpu_blocks,
        "prompts_seconds": first,
        "decode_tokens_per_second": options.sequences * (options.tokens - 1) / (whole - first),
        "tokens_per_second": options.sequences * options.tokens / whole,
        "time_to_first_token": seconds(1, options.prompt, 1),
    }
    row["sequences_of_4k"] = row["blocks"] * 128 // 4096
    if options.far_tokens:
        far_first = seconds(1, options.far, 1)
        far_whole = seconds(1, options.far, options.far_tokens)
        row["far_first_seconds"] = far_first
        row["far_decode_tokens_per_second"] = (options.far_tokens - 1) / (far_whole - far_first)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a directory in Hugging Face format")
    parser.add_argument(
        "--caches",
        default="stock,stock fp8,bf16,turbo4",
        help="stock, stock fp8, and profiles (stock,stock fp8,bf16,turbo4)",
    )
    parser.add_argument("--dtype", default="bfloat16", help="of weights and activations (bfloat16)")
    parser.add_argument("--mib", type=int, default=512, help="memory of the cache (512)")
    parser.add_argument("--sequences", type=int, default=16, help="requests at once (16)")
    parser.add_argument("--prompt", type=int, default=448, help="tokens of a prompt (448)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer (64)")
    parser.add_argument("--far", type=int, default=8064, help="tokens of one long prompt (8064)")
    parser.add_argument("--far-tokens", type=int, default=0, help="tokens of its answer, 0: not measured (0)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every side (the cores)")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(MARK + json.dumps(measure(options.model, options.only, options)))
        return 0
    rows = []
    for name in options.caches.split(","):
        done = subprocess.run([sys.executable, *sys.argv, "--only", name], capture_output=True, text=True)
        line = next((line for line in done.stdout.splitlines() if line.startswith(MARK)), None)
        if line is None:
            print(f"{name}: {(done.stderr.strip().splitlines() or ['no words'])[-1]}", file=sys.stderr)
            continue
        rows.append(json.loads(line.removeprefix(MARK)))
        print(rows[-1], flush=True)
    if options.json:
        options.json.write_text(json.dumps({"command": sys.argv[1:], "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
