"""The objective of unCLIP's diffusion prior: image embeddings denoised, given captions.

The network predicts the image embedding x_0 from the noised one. The loss is their squared error
(section 2.2, arXiv 2204.06125), in the space where each dimension has mean 0 and standard deviation
1 over the training images (Karlo's; the paper multiplies all by 17.2).
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from glide_jax.config import Config
from glide_jax.data.transforms import to_float
from glide_jax.diffusion import timestep_sampling
from glide_jax.diffusion.process import q_sample
from glide_jax.diffusion.schedule import Schedule
from glide_jax.diffusion.timestep_sampling import LossHistory
from glide_jax.models.network import Network
from glide_jax.models.platform import ANY_PLATFORM, Platform
from glide_jax.models.prior import Prior, prior_network
from glide_jax.parallel import sharding
from glide_jax.shapes import Batch, Params
from glide_jax.training.frozen_clip import FrozenClip, cosine
from glide_jax.training.objective import (
    BatchGradient,
    Validation,
    mean_gradient,
    merge_micro_batches,
    split_micro_batches,
)

DEVIATION_FLOOR = 1e-4
"""Smallest standard deviation, as a fraction of the largest."""


class DiffusionPrior:
    """The objective of a run that trains a diffusion prior.

    Dropped captions are empty ones, which the CLIP embeds as any other: there is no null embedding.

    Args:
        config: the run.
        clip: the CLIP of train.clip_run, which embeds captions, and images unless batches have
            embeddings.
    """

    statistics_examples = 4096
    """Training examples over which the mean and deviation of embeddings are measured."""

    def __init__(self, config: Config, clip: FrozenClip) -> None:
        self.config = config
        self.clip = clip
        self.network: Network[Prior] = prior_network(config.prior)
        self.frozen: Params = clip.params
        self.timestep_count = config.diffusion.steps
        self.schedule = Schedule.of(config.diffusion)

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
        t_key, eps_key = jax.random.split(key)
        t = timestep_sampling.uniform(t_key, len(batch["tokens"]), self.timestep_count)

        def mean_loss(
            params: Params, part: tuple[Batch, Int[Array, "b"], Float[Array, "b d"]]
        ) -> tuple[jax.Array, dict[str, jax.Array]]:
            values = self._losses(params, frozen, *part, platform)
            return jnp.mean(values["loss"]), values

        inputs = batch, t, self._eps(eps_key, batch)
        grads, values = mean_gradient(mean_loss, params, inputs, self.config.train.micro_batches)
        metrics = {name: jnp.mean(value) for name, value in values.items()}
        return BatchGradient(grads, metrics, t, values["loss"])

    def validate(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        key: PRNGKeyArray,
        platform: Platform = ANY_PLATFORM,
    ) -> Validation:
        """See `objective.Objective`."""
        t_key, eps_key = jax.random.split(key)
        t = timestep_sampling.stratified(t_key, len(batch["tokens"]), self.timestep_count)

        def values(
            part: tuple[Batch, Int[Array, "b"], Float[Array, "b d"]],
        ) -> dict[str, jax.Array]:
            return self._losses(params, frozen, *part, platform)

        parts = split_micro_batches(
            (batch, t, self._eps(eps_key, batch)), self.config.train.micro_batches
        )
        return Validation(t, merge_micro_batches(jax.lax.map(values, parts)))

    def constrain(self, params: Params) -> Params:
        """See `objective.Objective`: there is no constraint."""
        return params

    def statistics(
        self, image: Float[np.ndarray, "n d"], text: Float[np.ndarray, "n d"]
    ) -> dict[str, np.ndarray]:
        """The measured parameters: see `statistics_of`."""
        return statistics_of(image)

    def _eps(self, key: PRNGKeyArray, batch: Batch) -> Float[Array, "b d"]:
        return jax.random.normal(key, (len(batch["tokens"]), self.config.prior.embedding_width))

    def _losses(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        t: Int[Array, "b"],
        eps: Float[Array, "b d"],
        platform: Platform,
    ) -> dict[str, Float[Array, "b"]]:
        """`loss`, and `cosine`: of the predicted and the true embedding, without their mean."""
        prior = self.network.bind(params, platform)
        z = image_embeddings(self.clip, frozen, batch, platform)
        # No gradient reaches the mean and the deviation: their Adam update is zero.
        x_0 = jax.lax.stop_gradient(prior.normalize(z))  # b d
        x_t = q_sample(self.schedule, x_0, t, eps)
        text = self.clip.embed_text(frozen, batch["tokens"], batch["token_mask"], platform)
        predicted = prior(x_t, t, text).astype(jnp.float32)  # b d
        std = params["std"]
        return {
            "loss": jnp.mean(jnp.square(predicted - x_0), -1),
            "cosine": jax.lax.stop_gradient(cosine(std * predicted, std * x_0)),
        }


def image_embeddings(
    clip: FrozenClip, frozen: Params, batch: Batch, platform: Platform = ANY_PLATFORM
) -> Float[Array, "b d"]:
    """The batch's image embeddings, or those that the CLIP makes of its images."""
    if "image_embedding" in batch:
        return batch["image_embedding"]
    return clip.embed_image(frozen, to_float(batch["image"]), platform)


def embeddings_of(
    clip: FrozenClip, batches: Iterator[Batch], mesh: Mesh, examples: int
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]:
    """Embeddings of the first examples: images and captions. All processes must call it.

    Args:
        clip: the CLIP.
        batches: on the devices of the mesh.
        mesh: of all processes.
        examples: number of them, rounded up to full batches.

    Returns:
        All embeddings, in every process.
    """
    frozen = sharding.place(clip.params, sharding.infer(clip.params, mesh))
    platform = Platform.of(mesh, sharding.batch_sharding(mesh), training=True)

    @jax.jit
    def embed(frozen: Params, batch: Batch) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
        text = clip.embed_text(frozen, batch["tokens"], batch["token_mask"], platform)
        return image_embeddings(clip, frozen, batch, platform), text.embedding

    found: list[tuple[np.ndarray, np.ndarray]] = []
    while sum(len(image) for image, _ in found) < examples:
        found.append(sharding.to_host(embed(frozen, next(batches))))
    image, text = (np.concatenate(part) for part in zip(*found, strict=True))
    return image, text


def statistics_of(embeddings: Float[np.ndarray, "n d"]) -> dict[str, Float[np.ndarray, "d"]]:
    """`mean` and `std` of each dimension, as a diffusion prior's parameters."""
    return {
        "mean": embeddings.mean(0, dtype=np.float64).astype(np.float32),
        "std": deviations(embeddings).astype(np.float32),
    }


def deviations(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d"]:
    """The standard deviation of each column; of one that hardly varies, a floor.

    Errors of a sampled value are multiplied by it: the floor is far below the largest.
    """
    std = x.std(0, dtype=np.float64)
    return np.maximum(std, DEVIATION_FLOOR * std.max() or 1)
