"""The built-in data set `scenes`: procedurally generated, captioned images."""
