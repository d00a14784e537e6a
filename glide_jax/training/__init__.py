"""Objectives, the train step, the optimizer, validation and logs."""
