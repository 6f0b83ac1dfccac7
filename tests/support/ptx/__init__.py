"""PTX, which NVIDIA's driver is given, run on a CPU: what a kernel computes as it was compiled, and what it may not do."""
