"""Weights that stay in a GGUF file's blocks: mapped from the file, multiplied by ggml's kernels."""
