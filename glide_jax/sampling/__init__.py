"""Sampling with trained models: `Glide`, one model at a time, compiled programs, outputs."""
