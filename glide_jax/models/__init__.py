"""The networks. They know nothing of noise schedules, data or devices."""
