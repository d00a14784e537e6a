"""Optimiser, sharding, train step, checkpoints, logs."""
