"""What spans cost a decoding step: `python tests/support/spans_speed.py TOKENS STEPS PROFILE PROFILE ...`.

The embedded model after so many tokens, one step with each profile by turns: medians, each profile's steps over the first one's,
pair by pair, and the tokens that fill a page, over the other tokens' median.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from stratakv import KVCache, load_model
from stratakv.pages.layout import PAGE_TOKENS

PIECE = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokens", type=int)
    parser.add_argument("steps", type=int)
    parser.add_argument("profiles", nargs="+")
    args = parser.parse_args()
    model = load_model("embedded").model
    caches = [KVCache(model.config, profile) for profile in args.profiles]
    generator = torch.Generator().manual_seed(0)
    token = torch.tensor([[7]])
    seconds: list[list[float]] = [[] for _ in caches]
    filling: list[list[float]] = [[] for _ in caches]
    with torch.inference_mode():
        for cache in caches:
            for start in range(0, args.tokens, PIECE):
                for layer in range(len(cache.layers)):
                    k, v = torch.randn(2, 1, 2, min(PIECE, args.tokens - start), 128, generator=generator)
                    cache.update(k, v, layer)
        for step in range(args.steps + 3):
            for number, cache in enumerate(caches):
                begin = time.perf_counter()
                model(token, past_key_values=cache)
                taken = time.perf_counter() - begin
                if step >= 3:
                    seconds[number].append(taken)
                    if cache.get_seq_length() % PAGE_TOKENS == 0:
                        filling[number].append(taken)
    for profile, mine, pages in zip(args.profiles, seconds, filling, strict=True):
        median = statistics.median(mine)
        ratio = statistics.median(ours / base for ours, base in zip(mine, seconds[0], strict=True))
        words = ", ".join(f"{taken / median:.2f}" for taken in pages)
        print(f"{profile}: {1e3 * median:.2f} ms a token, {ratio:.3f} of the first; tokens that fill a page: {words}")


if __name__ == "__main__":
    main()
