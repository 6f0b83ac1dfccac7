"""Models run: loading, the attention hook, generation."""
