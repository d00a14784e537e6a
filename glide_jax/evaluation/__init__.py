"""Measures of what the models draw, each a module."""
