"""Commands that evaluate images and models."""
