"""Many requests: grids, and presets that look for a recipe."""
