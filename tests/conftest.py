"""Triton reads this when it is imported, by transformers for example: its kernels run in its interpreter, on a CPU."""

import os

os.environ["TRITON_INTERPRET"] = "1"
