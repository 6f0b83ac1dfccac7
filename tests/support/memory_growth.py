"""How a server's memory grows over requests of random length and content: a process of its own, that prints MiB.

python tests/support/memory_growth.py MODEL REQUESTS LONGEST [FIRST]

Anonymous memory is counted, so mapped weights aren't; the cache is small, so all of its pages are touched by the first requests.
"""

from __future__ import annotations

import asyncio
import random
import re
import sys
from pathlib import Path

from stratakv.engine.load import load_model
from stratakv.profile import resolve
from stratakv.serve.engine import Engine
from stratakv.serve.request import GenerationRequest, Limits
from stratakv.serve.samplers import SamplingParams
from stratakv.serve.ticket import collect

AT_ONCE = 4


def anonymous_mib() -> float:
    """This process's memory that no file holds."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) / 1024


async def grown(engine: Engine, requests: int, longest: int, first: int) -> float:
    """MiB that `requests` requests add to what `first` of them took."""
    generator, base, done = random.Random(1), 0.0, 0

    async def one() -> None:
        words = [
            chr(generator.randrange(33, 1000)) * generator.randint(1, 9) for _ in range(generator.randint(1, longest))
        ]
        ids = engine.loaded.tokenizer(" ".join(words)).input_ids[: generator.randint(1, longest)]
        sampling = SamplingParams(seed=generator.randrange(1000), logprobs=generator.choice([None, 3]))
        finish = (await collect(engine.submit(GenerationRequest(tuple(ids), generator.randint(1, 5), sampling))))[2]
        assert finish.reason != "error", finish

    while done < requests:
        await asyncio.gather(*[one() for _ in range(AT_ONCE)])
        done += AT_ONCE
        if done - AT_ONCE < first <= done:
            base = anonymous_mib()
        if done % 100 == 0:
            print(f"{done}: {anonymous_mib():.1f} MiB", file=sys.stderr, flush=True)
    await engine.stop()
    return anonymous_mib() - base


def main(model: str, requests: str, longest: str, first: str = "50") -> None:
    """Print the growth."""
    loaded = load_model(model)
    profile = resolve("turbo4", loaded.geometry)
    memory = AT_ONCE * (int(longest) + 640) * profile.bytes_per_token
    engine = Engine(loaded, profile, Limits(slots=AT_ONCE, context=int(longest) + 8, cache_bytes=memory))
    engine.start()
    print(asyncio.run(grown(engine, int(requests), int(longest), int(first))))


if __name__ == "__main__":
    main(*sys.argv[1:])
