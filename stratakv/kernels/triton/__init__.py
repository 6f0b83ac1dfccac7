"""The kernels of a GPU, in Triton: one template for all types. Triton itself is imported when they are used."""
