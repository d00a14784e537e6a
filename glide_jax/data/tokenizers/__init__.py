"""Tokenizers: GLIDE's byte-level BPE and CLIP's BPE."""
