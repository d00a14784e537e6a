"""Write a run's EMA parameters as a folder to publish."""
