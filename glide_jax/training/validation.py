"""Validation losses on held-out images, over all timesteps and by timestep bucket."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jax.sharding import Mesh

from glide_jax.data.records import Source
from glide_jax.data.validation import validation_batches, validation_examples
from glide_jax.parallel import sharding
from glide_jax.runs.folder import Run
from glide_jax.runs.state import TrainState
from glide_jax.shapes import Batch
from glide_jax.training.batch_sizes import with_validation_batch
from glide_jax.training.objective import Validation
from glide_jax.training.step import Trainer

BUCKETS = 5
"""Timestep buckets: equal parts of [0, T)."""


class Validator:
    """Losses of a train state on held-out batches.

    Args:
        trainer: of the run.
        mesh: of the trainer.
        batches: this process's part of each batch, on the host.
        examples: held-out images in the batches, over all processes; what follows repeats them.
    """

    def __init__(
        self, trainer: Trainer, mesh: Mesh, batches: Sequence[Batch], examples: int
    ) -> None:
        self._trainer, self._mesh, self._batches = trainer, mesh, batches
        self.examples = examples
        """Held-out images that are compared, over all processes."""

    @classmethod
    def open(
        cls, run: Run, trainer: Trainer, mesh: Mesh, held_out: Source, **share: Any
    ) -> "Validator | None":
        """Reads the held-out batches; None if the run is not validated.

        Args:
            run: with its tokenizer.
            trainer, mesh: see the class.
            held_out: the validation split.
            share: this process's part of a batch, as of `validation_batches`.

        Raises:
            UserError: the images are too few, or too many of them cannot be read.
        """
        settings = run.config.train
        if not settings.validate_every_steps:
            return None
        examples = validation_examples(held_out, run.config, settings.validation_examples)
        config = with_validation_batch(run.config, len(examples))
        batches = list(validation_batches(examples, run.tokenizer, config, **share))
        compared = min(len(batches) * config.train.batch_examples, len(examples))
        return cls(trainer, mesh, batches, compared)

    def __call__(self, state: TrainState) -> dict[str, float]:
        """See `summary`: validation_NAME of the EMA, validation_NAME_raw of the parameters."""
        values: dict[str, float] = {}
        for params, suffix in ((state.ema, ""), (state.params, "_raw")):
            results = [
                sharding.to_host(
                    self._trainer.validate(params, sharding.to_devices(batch, self._mesh), k)
                )
                for k, batch in enumerate(self._batches)
            ]
            found = summary(results, self._trainer.timestep_count, self.examples)
            values |= {f"validation_{name}{suffix}": value for name, value in found.items()}
        return values


def buckets(timestep_count: int) -> list[tuple[int, int]]:
    """The buckets, each as its first timestep and that of the next."""
    return list(pairwise(i * timestep_count // BUCKETS for i in range(BUCKETS + 1)))


def summary(results: Sequence[Validation], timestep_count: int, examples: int) -> dict[str, float]:
    """Means over the examples, and `mse` or `accuracy` by timestep bucket.

    Args:
        results: of every batch, on the host.
        timestep_count: T; if below BUCKETS, there are no buckets.
        examples: number of them; further rows are left out.

    Returns:
        `loss`, `mse`, ..., and `mse_t000-199` and so on: of the examples with t in that bucket.
    """
    t = np.concatenate([result.t for result in results])[:examples]
    values = {
        name: np.concatenate([result.values[name] for result in results])[:examples]
        for name in results[0].values
    }
    means = {name: float(value.mean()) for name, value in values.items()}
    if timestep_count < BUCKETS:
        return means
    bucketed = "mse" if "mse" in values else "accuracy"
    for low, high in buckets(timestep_count):
        inside = (t >= low) & (t < high)
        if inside.any():
            name = f"{bucketed}_t{low:03}-{high - 1:03}"
            means[name] = float(values[bucketed][inside].mean())
    return means
