"""Plan TPU runs without hardware: memory and step time from the TPU compiler."""
