"""Devices and processes: sharding rules, launching and connecting the processes of a run."""
