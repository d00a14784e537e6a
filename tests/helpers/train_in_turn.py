"""Trains several configurations in turn with the same processes.

python -m tests.helpers.train_in_turn --coordinator HOST:PORT --processes N --process I CONFIG...
"""

import os
from pathlib import Path

import tyro

from glide_jax.config import Config
from glide_jax.errors import exit_on_user_error
from glide_jax.parallel.launch import Launch, LaunchFlags, joined
from glide_jax.runs.paths import last_step
from glide_jax.train import train
from glide_jax.training.profiling import Profile

with exit_on_user_error():
    flags, files = tyro.cli(LaunchFlags, return_unknown_args=True)
    configs = [Config.load(Path(file)) for file in files]
    latest = Path(configs[-1].train.run_dir)
    with joined(Launch.of(flags, os.environ), lambda: last_step(latest)) as group:
        for config in configs:
            train(config, Path(config.train.run_dir), group, Profile())
