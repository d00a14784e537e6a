"""Trains several configurations in one start of the processes.

python -m tests.train_in_turn --coordinator HOST:PORT --processes N --process I a.json b.json
"""

import os
import sys
from pathlib import Path

from glide_jax.config import Config
from glide_jax.errors import exit_on_user_error
from glide_jax.parallel.launch import Launch, joined
from glide_jax.runs.layout import last_step
from glide_jax.train import train
from glide_jax.training.profiling import Profile

with exit_on_user_error():
    launch, files = Launch.parse(sys.argv[1:], os.environ)
    configs = [Config.load(Path(file)) for file in files]
    latest = Path(configs[-1].train.run_dir)
    with joined(launch, lambda: last_step(latest)) as group:
        for config in configs:
            train(config, Path(config.train.run_dir), group, Profile())
