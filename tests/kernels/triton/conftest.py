"""Triton reads this when the kernels are first imported: they run in its interpreter, on a CPU."""

import os

os.environ["TRITON_INTERPRET"] = "1"
