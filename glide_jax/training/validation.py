"""Validation losses on held-out images, over all timesteps and by timestep bucket.

Are captions used? A model that ignores them has the same loss with any: the losses with shuffled
and with empty captions, of the same images with the same noise, say how much they help.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypedDict, cast

import numpy as np
from jax.sharding import Mesh

from glide_jax.config import AnyModel, ClipConfig, ModelConfig
from glide_jax.data.examples import Example
from glide_jax.data.records import Source
from glide_jax.data.validation import (
    validation_batches,
    validation_examples,
    with_other_captions,
    without_captions,
)
from glide_jax.parallel import sharding
from glide_jax.runs.folder import Run
from glide_jax.runs.state import TrainState
from glide_jax.shapes import Batch, Params, TokenMask, Tokens
from glide_jax.training.batch_sizes import with_validation_batch
from glide_jax.training.objective import Validation
from glide_jax.training.step import Trainer

BUCKETS = 5
"""Timestep buckets: equal parts of [0, T)."""
OTHER_CAPTIONS = {
    "shuffled_captions": with_other_captions,
    "no_captions": without_captions,
}
"""What replaces the captions of held-out images, by the suffix of its losses."""


class Captions(TypedDict):
    """The arrays of a batch that a denoiser reads its captions from."""

    tokens: Tokens
    token_mask: TokenMask


class Validator:
    """Losses of a train state on held-out batches.

    Args:
        trainer: of the run.
        mesh: of the trainer.
        batches: this process's part of each batch, on the host.
        examples: held-out images in the batches, over all processes; what follows repeats them.
        other_captions: arrays that replace those of the batches, by the suffix of the losses.
    """

    def __init__(
        self,
        trainer: Trainer,
        mesh: Mesh,
        batches: Sequence[Batch],
        examples: int,
        other_captions: Mapping[str, Sequence[Captions]] | None = None,
    ) -> None:
        self._trainer, self._mesh, self._batches = trainer, mesh, batches
        self._other_captions = other_captions or {}
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

        def batches(examples: Sequence[Example]) -> list[Batch]:
            return list(validation_batches(examples, run.tokenizer, config, **share))

        own = batches(examples)
        compared = min(len(own) * config.train.batch_examples, len(examples))
        others: dict[str, list[Captions]] = {}
        captioned = settings.validate_captions and _reads_captions(config.model)
        if captioned and len({e.caption for e in examples}) > 1:
            others = {
                name: [
                    Captions(tokens=batch["tokens"], token_mask=batch["token_mask"])
                    for batch in batches(replaced(examples))
                ]
                for name, replaced in OTHER_CAPTIONS.items()
            }
        return cls(trainer, mesh, own, compared, others)

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Validation metrics; all processes must call it.

        Returns:
            See `summary`: validation_NAME of the EMA, validation_NAME_raw of the parameters. Of the
            EMA, also validation_loss_shuffled_captions and validation_loss_no_captions; `mse` in
            place of `loss` if a CLIP's loss, which compares with the captions, is a part of it.
        """
        values: dict[str, float] = {}
        for params, suffix in ((state.ema, ""), (state.params, "_raw")):
            found = self._summary(params, self._batches)
            values |= {f"validation_{name}{suffix}": value for name, value in found.items()}
        compared = "mse" if "validation_clip_loss" in values else "loss"
        for name, captions in self._other_captions.items():
            pairs = zip(self._batches, captions, strict=True)
            batches = [cast(Batch, {**own, **other}) for own, other in pairs]
            found = self._summary(state.ema, batches)
            values[f"validation_{compared}_{name}"] = found[compared]
        return values

    def _summary(self, params: Params, batches: Sequence[Batch]) -> dict[str, float]:
        results = [
            sharding.to_host(
                self._trainer.validate(params, sharding.to_devices(batch, self._mesh), k)
            )
            for k, batch in enumerate(batches)
        ]
        return summary(results, self._trainer.timestep_count, self.examples)


def _reads_captions(model: AnyModel) -> bool:
    """Whether other captions give another loss; a CLIP's compares captions with others anyway."""
    if isinstance(model, ModelConfig):
        return model.text.encoder != "none"
    return not isinstance(model, ClipConfig)


def buckets(timestep_count: int) -> list[tuple[int, int]]:
    """The buckets, each as its first timestep and that of the next."""
    return list(pairwise(i * timestep_count // BUCKETS for i in range(BUCKETS + 1)))


def summary(results: Sequence[Validation], timestep_count: int, examples: int) -> dict[str, float]:
    """Means over the examples, and `mse`, `accuracy` or `cosine` by timestep bucket.

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
    bucketed = next(name for name in ("mse", "accuracy", "cosine") if name in values)
    for low, high in buckets(timestep_count):
        inside = (t >= low) & (t < high)
        if inside.any():
            name = f"{bucketed}_t{low:03}-{high - 1:03}"
            means[name] = float(values[bucketed][inside].mean())
    return means
