"""How attention reads packed pages."""
