"""Metrics as functions of arrays: they know no networks, files or runs."""
