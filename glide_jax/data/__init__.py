"""Captioned images: sources, records, transforms, masks, tokenizers, loader, built-in scenes."""
