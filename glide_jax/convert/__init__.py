"""Convert OpenAI's released checkpoints to run folders and back."""
