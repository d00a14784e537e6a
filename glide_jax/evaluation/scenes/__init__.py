"""Scoring models on the built-in data set `scenes`."""
