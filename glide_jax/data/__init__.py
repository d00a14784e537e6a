"""Captioned pictures: sources, transforms, tokenizer, loader."""
