"""The objective of unCLIP's autoregressive prior: cross-entropy of the codes of image embeddings.

Section 2.2, arXiv 2204.06125. Dropped captions are empty ones, as for the diffusion prior.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from glide_jax.config import Config, PriorConfig
from glide_jax.diffusion.timestep_sampling import LossHistory
from glide_jax.models.ar_prior import ArPrior, ar_prior
from glide_jax.models.network import Network
from glide_jax.models.platform import ANY_PLATFORM, Platform
from glide_jax.shapes import Batch, Params
from glide_jax.training.frozen_clip import FrozenClip
from glide_jax.training.objective import (
    BatchGradient,
    Validation,
    mean_gradient,
    merge_micro_batches,
    split_micro_batches,
)
from glide_jax.training.prior import deviations, image_embeddings


class AutoregressivePrior:
    """The objective of a run that trains an autoregressive prior.

    Args:
        config: the run.
        clip: as of `DiffusionPrior`.
    """

    statistics_examples = 16_384
    """Training examples over which principal components are measured."""

    def __init__(self, config: Config, clip: FrozenClip) -> None:
        self.config = config
        self.clip = clip
        self.network: Network[ArPrior] = ar_prior(config.prior)
        self.frozen: Params = clip.params
        self.timestep_count = 1  # no noise

    def gradient(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        key: PRNGKeyArray,
        history: LossHistory | None,
        platform: Platform = ANY_PLATFORM,
    ) -> BatchGradient:
        """See `objective.Objective`. Micro-batches run one after another."""

        def mean_loss(params: Params, part: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
            values = self._losses(params, frozen, part, platform)
            return jnp.mean(values["loss"]), values

        parts = self.config.train.micro_batches
        grads, values = mean_gradient(mean_loss, params, batch, parts)
        metrics = {name: jnp.mean(value) for name, value in values.items()}
        return BatchGradient(grads, metrics, _no_noise(batch), values["loss"])

    def validate(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        key: PRNGKeyArray,
        platform: Platform = ANY_PLATFORM,
    ) -> Validation:
        """See `objective.Objective`."""

        def values(part: Batch) -> dict[str, jax.Array]:
            return self._losses(params, frozen, part, platform)

        parts = split_micro_batches(batch, self.config.train.micro_batches)
        return Validation(_no_noise(batch), merge_micro_batches(jax.lax.map(values, parts)))

    def constrain(self, params: Params) -> Params:
        """See `objective.Objective`: there is no constraint."""
        return params

    def statistics(
        self, image: Float[np.ndarray, "n d"], text: Float[np.ndarray, "n d"]
    ) -> dict[str, np.ndarray]:
        """The measured parameters: see `statistics_of`."""
        return statistics_of(image, text, self.config.prior)

    def _losses(
        self, params: Params, frozen: Params, batch: Batch, platform: Platform
    ) -> dict[str, jax.Array]:
        """`loss`, nats per code, and `accuracy`, the fraction of codes that are the likeliest."""
        prior = self.network.bind(params, platform)
        text = self.clip.embed_text(frozen, batch["tokens"], batch["token_mask"], platform)
        z = image_embeddings(self.clip, frozen, batch, platform)
        codes, dot = prior.encode(z), prior.dot_code(z, text)
        logits = prior(codes, dot, text).astype(jnp.float32)  # b e buckets
        own = jnp.take_along_axis(logits, codes[..., None], -1)[..., 0]  # b e
        return {
            "loss": jnp.mean(jax.nn.logsumexp(logits, -1) - own, -1),
            "accuracy": jnp.mean(jnp.argmax(logits, -1) == codes, -1, dtype=jnp.float32),
        }


def _no_noise(batch: Batch) -> Any:
    return jnp.zeros(len(batch["tokens"]), jnp.int32)


def statistics_of(
    image: Float[np.ndarray, "n d"], text: Float[np.ndarray, "n d"], config: PriorConfig
) -> dict[str, np.ndarray]:
    """Principal components, and quantiles of the dot product, as an `ArPrior`'s parameters.

    Args:
        image: embeddings of training images.
        text: embeddings of their captions.
        config: of the prior.
    """
    mean = image.mean(0, dtype=np.float64)
    centered = image - mean
    _, vectors = np.linalg.eigh(centered.T @ centered)  # ascending eigenvalues
    basis = vectors[:, ::-1][:, : config.components]  # d e
    quantiles = np.arange(1, config.dot_buckets) / config.dot_buckets
    found = {
        "mean": mean,
        "basis": basis.reshape(-1),
        "std": deviations(centered @ basis),
        "dot_edges": np.quantile(np.sum(image * text, -1), quantiles),
    }
    return {name: value.astype(np.float32) for name, value in found.items()}
