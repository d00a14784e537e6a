"""The networks. They do not depend on noise schedules, data or devices."""
