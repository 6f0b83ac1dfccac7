"""Tokens per second and peak memory of whole models, by cache."""
