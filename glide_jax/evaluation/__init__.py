"""Evaluation of models: metrics on any images, and the scorer of the built-in data set."""
