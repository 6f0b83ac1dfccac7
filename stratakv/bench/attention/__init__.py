"""Decode attention, prefill and encoding over packed pages, beside torch's and llama.cpp's."""
