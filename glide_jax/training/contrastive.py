"""The objective of CLIPs: a caption and its image point the same way, others do not.

Noised CLIP sees its images with the base model's noise (sec. 2.4, arXiv 2112.10741); a CLIP with
a single noise level sees them as they are, and is for ranking.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from glide_jax.config import Config
from glide_jax.diffusion import timestep_sampling
from glide_jax.diffusion.process import q_sample
from glide_jax.diffusion.schedule import Schedule
from glide_jax.diffusion.timestep_sampling import LossHistory
from glide_jax.models.clip import Clip, clip_network
from glide_jax.models.network import Network
from glide_jax.shapes import Batch, Image, Params, TokenMask, Tokens
from glide_jax.training.objective import (
    Gradient,
    Validation,
    merge,
    split,
    stratified_timesteps,
)

LARGEST_SCALE = 100.0
"""Of similarities in the loss: more makes training unstable (sec. 2.5, arXiv 2103.00020)."""


class Contrastive:
    """The objective.

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
    ) -> Gradient:
        """See `objective.Objective`. The loss is the whole batch's, over devices and micro-batches.

        Micro-batches keep the embeddings alone and compute the towers anew in the backward pass
        (arXiv 2101.06983): a batch of any size fits, and gives the gradient it would give at once.
        """
        t_key, eps_key = jax.random.split(key)
        b = len(batch["image"])
        t = timestep_sampling.uniform(t_key, b, self.timestep_count)
        x_t = self._noised(batch["image"], t, eps_key)

        def loss(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
            clip = self.network.bind(params)
            image, text = self._embedded(clip, x_t, t, batch)
            values = _compared(image, text, clip.logit_scale[...])
            return jnp.mean(values["loss"]), values

        grads, values = jax.grad(loss, has_aux=True)(params)
        metrics = {name: jnp.mean(value) for name, value in values.items()}
        metrics["temperature"] = jnp.exp(-params["logit_scale"])
        return Gradient(grads, metrics, t, values["loss"])

    def validate(
        self, params: Params, frozen: Params, batch: Batch, key: PRNGKeyArray
    ) -> Validation:
        """See `objective.Objective`. Images are told apart within the batch, at mixed steps."""
        t_key, eps_key = jax.random.split(key)
        t = stratified_timesteps(t_key, len(batch["image"]), self.timestep_count)
        clip = self.network.bind(params)
        image, text = self._embedded(clip, self._noised(batch["image"], t, eps_key), t, batch)
        return Validation(t, _compared(image, text, clip.logit_scale[...]))

    def _embedded(
        self, clip: Clip, x_t: Image, t: Int[Array, "b"], batch: Batch
    ) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
        """Embeddings of images and captions, one micro-batch after the other."""

        def embed(
            part: tuple[Image, Int[Array, "b"], Tokens, TokenMask],
        ) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
            x_t, t, tokens, mask = part
            return clip.encode_image(x_t, t), clip.encode_text(tokens, mask)

        inputs = x_t, t, batch["tokens"], batch["token_mask"]
        parts = self.config.train.micro_batches
        if parts == 1:
            return embed(inputs)
        return merge(jax.lax.map(jax.checkpoint(embed), split(inputs, parts)))

    def constrain(self, params: Params) -> Params:
        """See `objective.Objective`: similarities are scaled by LARGEST_SCALE at most."""
        scale = jnp.minimum(params["logit_scale"], jnp.log(LARGEST_SCALE))
        return params | {"logit_scale": scale}

    def _noised(self, image: Image, t: Int[Array, "b"], key: PRNGKeyArray) -> Image:
        if self.timestep_count == 1:
            return image
        return q_sample(self._schedule, image, t, jax.random.normal(key, image.shape))


def _compared(
    image: Float[Array, "b d"], text: Float[Array, "b d"], logit_scale: Float[Array, ""]
) -> dict[str, Float[Array, "b"]]:
    """Symmetric cross-entropy over the batch, fig. 3 of arXiv 2103.00020.

    Returns:
        loss: each pair's, the mean of picking its caption and picking its image, in nats.
        accuracy: 1 where the image's own caption is nearest.
    """
    logits = jnp.exp(logit_scale) * image @ text.T  # images in rows, captions in columns
    right = jnp.exp(logit_scale) * jnp.sum(image * text, 1)  # each device's own
    of_captions = jax.nn.logsumexp(logits, 1) - right
    of_images = jax.nn.logsumexp(logits, 0) - right
    accuracy = (jnp.argmax(logits, 1) == jnp.arange(len(logits))).astype(jnp.float32)
    return {"loss": (of_captions + of_images) / 2, "accuracy": accuracy}
