"""With PTX=90 these tests run on the machine code for compute capability 9.0 instead of in Triton's interpreter."""

from __future__ import annotations

import os

if "PTX" in os.environ:
    from ptx.launching import use_machine_code

    use_machine_code(int(os.environ["PTX"]))
