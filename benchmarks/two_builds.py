"""Two builds decode in turn: what a change costs, on a machine whose clock wanders more than the change.

`.venv/bin/python benchmarks/two_builds.py OLD/.venv/bin/python NEW/.venv/bin/python -m MODEL.gguf`. Give both the same libraries:
with torch's wheel for CUDA one and the same build was up to 5 % faster than with the one for CPUs alone.
"""

from __future__ import annotations

import argparse
import signal
from contextlib import ExitStack
from statistics import median, quantiles

from stratakv.bench.worker import Worker

# Each turn is six tokens or more, of which three are looked at
SECONDS, TURNS = 0.06, 40


def turns(workers: list[Worker]) -> list[list[float]]:
    """Milliseconds a token of each, turn by turn, every second one in the other order; who waits is stopped."""
    found: list[list[float]] = [[] for _ in workers]
    for worker in workers:
        worker.signal(signal.SIGSTOP)
    for turn in range(TURNS):
        for i in range(len(workers)) if turn % 2 else reversed(range(len(workers))):
            workers[i].signal(signal.SIGCONT)
            found[i].append(median(workers[i].ask(do="decode", seconds=SECONDS)["seconds"]) * 1e3)
            workers[i].signal(signal.SIGSTOP)
    for worker in workers:
        worker.signal(signal.SIGCONT)
    return found


def main() -> None:
    """A line for each context."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("python", nargs=2, help="interpreters of the two builds")
    parser.add_argument("-m", dest="model", default="embedded")
    parser.add_argument("-c", dest="contexts", type=int, nargs="+", default=[128, 8192])
    parser.add_argument("--profile", default="turbo4")
    parser.add_argument("-t", dest="threads", type=int, default=2)
    given = parser.parse_args()
    with ExitStack() as stack:
        workers = []
        for each in given.python:
            command = [each, "-m", "stratakv.bench.generate.worker"]
            workers.append(stack.enter_context(Worker(command, each, without=["OMP_NUM_THREADS"])))
            workers[-1].ask(do="load", model=given.model, threads=given.threads)
        for context in given.contexts:
            for worker in workers:
                worker.ask(do="fill", cache=given.profile, context=context)
            old, new = turns(workers)
            low, middle, high = quantiles((b / a for a, b in zip(old, new, strict=True)), n=4)
            print(
                f"{given.profile}, {context:,} tokens: {median(old):.2f} and {median(new):.2f} ms a token,"
                f" the second {middle:.3f} times the first [{low:.3f}, {high:.3f}]",
                flush=True,
            )


if __name__ == "__main__":
    main()
