"""Conversion of published checkpoints to run folders and back."""
