"""The built-in data set `scenes`: procedurally drawn, captioned images."""
