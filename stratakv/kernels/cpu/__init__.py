"""The compiled kernels of a CPU: C++, and how Python calls it."""
