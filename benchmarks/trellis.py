"""Relative squared error of turbo types and of trellis types with 8, 64 and 256 states: the table of docs/kv-types.md.

    python benchmarks/trellis.py [--vectors 2000]

Random directions that no levels were trained on, the whole codec, plain torch.
"""

from __future__ import annotations

import argparse

import torch

from stratakv.kvtypes import KVType, kv_type
from stratakv.kvtypes.trellis import TrellisType
from stratakv.kvtypes.trellis_levels import LEVELS

SEED = 7


def relative_error(type_: KVType, x: torch.Tensor) -> float:
    """The mean over vectors [n, head_dim] of the squared error over the squared length."""
    decoded = type_.decode(type_.encode(x), x.shape[-1])
    return float(((decoded - x).square().sum(-1) / x.square().sum(-1)).mean())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=2000)
    args = parser.parse_args()
    states = sorted({number for _, number in LEVELS})
    print("| bits | block | turbo |", *(f"{number} states |" for number in states))
    for bits in sorted({each for each, _ in LEVELS}):
        for block in (128, 64):
            x = torch.randn(args.vectors, block, generator=torch.Generator().manual_seed(SEED))
            types = [TrellisType(name=f"{number} states", bits=bits, states=number) for number in states]
            errors = [relative_error(type_, x) for type_ in (kv_type(f"turbo{bits}"), *types)]
            print(f"| {bits} | {block} |", *(f"{error:.3g} |" for error in errors), flush=True)


if __name__ == "__main__":
    main()
