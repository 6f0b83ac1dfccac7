"""Triton reads this when it is imported, by transformers for example: its kernels run in its interpreter, on a CPU, unless
tests/kernels/triton runs their machine code."""

import os

if "PTX" not in os.environ:
    os.environ["TRITON_INTERPRET"] = "1"
