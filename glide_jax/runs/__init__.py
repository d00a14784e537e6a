"""Run folders: configuration, tokenizer, checkpoints, train state."""
