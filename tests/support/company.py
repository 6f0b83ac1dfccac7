"""What company changes: `python tests/support/company.py MODEL PROFILE [--deterministic]`.

How many sampled answers of 32 differ from alone, four at once and each a little after the one before, and how long a prompt of
2,000 tokens takes alone and holds up four running answers.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

from stratakv import load_model, resolve
from stratakv.assets import judging_text
from stratakv.serve.engine import Engine
from stratakv.serve.request import Finish, GenerationRequest, Limits, Piece
from stratakv.serve.samplers import SamplingParams
from stratakv.serve.ticket import collect

SENTENCE = "The old lighthouse keeper walked down to the shore and looked at the sea while the storm came nearer. "
TIMES = (1, 2, 3, 5, 8, 1, 6, 12) * 4


def request(tokens: list[int], new: int = 32) -> GenerationRequest:
    sampling = SamplingParams(seed=42, temperature=0.8, logprobs=0)
    return GenerationRequest(tuple(tokens), new, sampling, ignore_eos=True, cache_prompt=False)


async def answer(engine: Engine, asked: GenerationRequest, delay: float = 0.0) -> list[tuple[int, float | None]]:
    await asyncio.sleep(delay)
    _, pieces, _ = await collect(engine.submit(asked))
    return [(token.id, token.logprob) for piece in pieces for token in piece.tokens]


async def differences(engine: Engine, prompts: list[list[int]]) -> None:
    asked = [request(prompt) for prompt in prompts]
    alone = [await answer(engine, each) for each in asked]
    four = [
        found
        for at in range(0, len(asked), 4)
        for found in await asyncio.gather(*(answer(engine, each) for each in asked[at : at + 4]))
    ]
    late = await asyncio.gather(*(answer(engine, each, 0.15 * at) for at, each in enumerate(asked)))
    for name, company in (("four at once", four), ("0.15 s apart", late)):
        tokens = sum(
            [t for t, _ in ours] != [t for t, _ in theirs] for ours, theirs in zip(alone, company, strict=True)
        )
        bits = sum(ours != theirs for ours, theirs in zip(alone, company, strict=True))
        print(f"{name}: of {len(asked)} answers {tokens} have other tokens, {bits} other log-probabilities")


async def delays(engine: Engine, long: list[int]) -> None:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        await answer(engine, request(long, 1))
        seconds.append(time.perf_counter() - started)
    gaps: list[tuple[float, float]] = []

    async def run(asked: GenerationRequest) -> None:
        last = None
        async for item in engine.submit(asked):
            now = time.perf_counter()
            if isinstance(item, Piece) and last is not None:
                gaps.append((now, now - last))
            last = None if isinstance(item, Finish) else now

    answers = [asyncio.create_task(run(request(long[at : at + 40], 150))) for at in range(4)]
    await asyncio.sleep(1)
    begin = time.perf_counter()
    await answer(engine, request(long, 1))
    end = time.perf_counter()
    await asyncio.gather(*answers)
    beside = statistics.median(gap for at, gap in gaps if begin < at <= end)
    without = statistics.median(gap for at, gap in gaps if not begin < at <= end)
    print(
        f"prompt of {len(long)}: {min(seconds):.2f} s alone, {end - begin:.2f} s beside four answers, "
        f"whose tokens came each {1e3 * beside:.0f} ms, {1e3 * without:.0f} ms without it (medians)"
    )


async def main(arguments: argparse.Namespace) -> None:
    loaded = load_model(arguments.model)
    limits = Limits(8, 2560, 2**29, prefix_cache=False, deterministic=arguments.deterministic)
    engine = Engine(loaded, resolve(arguments.profile, loaded.geometry), limits)
    engine.start()
    encode = loaded.tokenizer
    await differences(engine, [encode(SENTENCE * n + f"Number {i}:").input_ids for i, n in enumerate(TIMES)])
    await delays(engine, (encode(judging_text().read_text(encoding="utf-8")).input_ids * 4)[:2000])
    await engine.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("profile")
    parser.add_argument("--deterministic", action="store_true")
    asyncio.run(main(parser.parse_args()))
