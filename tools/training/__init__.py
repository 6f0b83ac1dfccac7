"""Training of the reference models: recipes, text and tokens, the loop."""
