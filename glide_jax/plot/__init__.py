"""Plot training curves and sample strips."""
