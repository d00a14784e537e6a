"""Captioned images: sources, transforms, tokenizers, masks, loader."""
