"""The contrastive objective of CLIP: embeddings of an image and its own caption are similar.

A noised CLIP sees images with the base model's noise (sec. 2.4, arXiv 2112.10741). A CLIP with a
single noise level sees clean images and is for ranking.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from glide_jax.config import Config
from glide_jax.data.transforms import to_float
from glide_jax.diffusion import timestep_sampling
from glide_jax.diffusion.process import q_sample
from glide_jax.diffusion.schedule import Schedule
from glide_jax.diffusion.timestep_sampling import LossHistory
from glide_jax.models.clip import Clip, clip_network
from glide_jax.models.network import Network
from glide_jax.models.platform import ANY_PLATFORM, Platform
from glide_jax.shapes import Batch, Image, Params, Pixels, TokenMask, Tokens
from glide_jax.training.objective import (
    BatchGradient,
    Validation,
    merge_micro_batches,
    split_micro_batches,
)

MAX_SCALE = 100.0
"""Largest scale of the logits: more makes training unstable (sec. 2.5, arXiv 2103.00020)."""


class Contrastive:
    """The contrastive objective of a run.

    Args:
        config: the run.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.network: Network[Clip] = clip_network(config.clip)
        self.frozen: Params = {}
        self.timestep_count = config.clip.steps
        self._schedule = Schedule.of(config.diffusion)

    def gradient(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        key: PRNGKeyArray,
        history: LossHistory | None,
        platform: Platform = ANY_PLATFORM,
    ) -> BatchGradient:
        """See `objective.Objective`. Negatives span the batch: all devices and micro-batches.

        Micro-batches store only embeddings; the backward pass recomputes the towers (arXiv
        2101.06983). Any batch size fits in memory, with the exact gradient.
        """
        t_key, eps_key = jax.random.split(key)
        b = len(batch["image"])
        t = timestep_sampling.uniform(t_key, b, self.timestep_count)
        x_t = self._noised(batch["image"], t, eps_key)

        def loss(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
            clip = self.network.bind(params, platform)
            image, text = self._embed(clip, x_t, t, batch)
            values = _compare(image, text, clip.logit_scale[...])
            return jnp.mean(values["loss"]), values

        grads, values = jax.grad(loss, has_aux=True)(params)
        metrics = {name: jnp.mean(value) for name, value in values.items()}
        metrics["temperature"] = jnp.exp(-params["logit_scale"])
        return BatchGradient(grads, metrics, t, values["loss"])

    def validate(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        key: PRNGKeyArray,
        platform: Platform = ANY_PLATFORM,
    ) -> Validation:
        """See `objective.Objective`. Negatives are the rest of the batch, at other t."""
        t_key, eps_key = jax.random.split(key)
        t = timestep_sampling.stratified(t_key, len(batch["image"]), self.timestep_count)
        clip = self.network.bind(params, platform)
        image, text = self._embed(clip, self._noised(batch["image"], t, eps_key), t, batch)
        return Validation(t, _compare(image, text, clip.logit_scale[...]))

    def _embed(
        self, clip: Clip, x_t: Image, t: Int[Array, "b"], batch: Batch
    ) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
        """Embeddings of images and captions, one micro-batch after another."""

        def towers(
            part: tuple[Image, Int[Array, "b"], Tokens, TokenMask],
        ) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
            x_t, t, tokens, mask = part
            return clip.encode_image(x_t, t), clip.encode_text(tokens, mask)

        inputs = x_t, t, batch["tokens"], batch["token_mask"]
        parts = self.config.train.micro_batches
        if parts == 1:
            return towers(inputs)
        return merge_micro_batches(
            jax.lax.map(jax.checkpoint(towers), split_micro_batches(inputs, parts))
        )

    def constrain(self, params: Params) -> Params:
        """See `objective.Objective`: similarities are scaled by MAX_SCALE at most."""
        scale = jnp.minimum(params["logit_scale"], jnp.log(MAX_SCALE))
        return params | {"logit_scale": scale}

    def _noised(self, pixels: Pixels, t: Int[Array, "b"], key: PRNGKeyArray) -> Image:
        image = to_float(pixels)
        if self.timestep_count == 1:
            return image
        return q_sample(self._schedule, image, t, jax.random.normal(key, image.shape))


def _compare(
    image: Float[Array, "b d"], text: Float[Array, "b d"], logit_scale: Float[Array, ""]
) -> dict[str, Float[Array, "b"]]:
    """Symmetric cross-entropy over the batch. Fig. 3, arXiv 2103.00020.

    Returns:
        loss: for each pair, the mean cross-entropy of the caption given the image and of the image
            given the caption, in nats.
        accuracy: 1 where the image's own caption is nearest.
    """
    # Scaled by up to 100: a matmul of lower precision would be off by more than small losses are.
    cosines = jnp.matmul(image, text.T, precision="highest")  # b b2: images in rows
    logits = jnp.exp(logit_scale) * cosines
    # The diagonal of the same matmul, so that no loss is negative; a sum is local to each device.
    own = jnp.sum(jnp.where(jnp.eye(len(logits), dtype=bool), logits, 0), 1)  # (b,)
    of_captions = jax.nn.logsumexp(logits, 1) - own
    of_images = jax.nn.logsumexp(logits, 0) - own
    accuracy = (jnp.argmax(logits, 1) == jnp.arange(len(logits))).astype(jnp.float32)
    return {"loss": (of_captions + of_images) / 2, "accuracy": accuracy}
