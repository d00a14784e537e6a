"""Published checkpoints: their parameter names, layouts, sizes and file formats."""
