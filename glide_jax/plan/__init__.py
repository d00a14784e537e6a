"""Plan TPU and GPU runs without hardware: memory and step time from their compilers."""
