"""Denoising: the objective of base models, unCLIP's decoders and upsamplers.

The default is GLIDE's hybrid loss with uniform t. Other weightings, distributions of t and an
auxiliary CLIP loss are options of the config.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from glide_jax.config import Config
from glide_jax.data.transforms import to_float
from glide_jax.diffusion import timestep_sampling
from glide_jax.diffusion.loss import HybridLoss, hybrid_loss, min_snr_weights
from glide_jax.diffusion.parameterization import Parameterization
from glide_jax.diffusion.process import q_sample, split_output
from glide_jax.diffusion.schedule import Schedule
from glide_jax.diffusion.timestep_sampling import LossHistory
from glide_jax.models.glide import GlideModel, TextFeatures, glide_network
from glide_jax.models.network import Network
from glide_jax.models.platform import ANY_PLATFORM, Platform
from glide_jax.shapes import Batch, Image, ModelOutput, Params, TextStates
from glide_jax.training.frozen_clip import FrozenClip, cosine
from glide_jax.training.low_res import area_average, gaussian_blur
from glide_jax.training.objective import (
    BatchGradient,
    Validation,
    mean_gradient,
    merge_micro_batches,
    split_micro_batches,
)


class _Draws(NamedTuple):
    """Random numbers of a step, drawn for all examples at once: independent of micro-batches."""

    t: Int[Array, "b"]
    weights: Float[Array, "b"]
    """1 / (T P(t)) for timesteps=loss-second-moment; else 1."""
    eps: Float[Array, "b h w c"]
    low_res: "_LowResDraws | None"
    embedding_given: Bool[Array, "b"]
    """unCLIP's decoder: False where the image embedding is dropped."""


class _LowResDraws(NamedTuple):
    """Random augmentation of an upsampler's low-resolution images."""

    blur_px: Float[Array, "b"]
    t: Int[Array, "b"]
    eps: Float[Array, "b h2 w2 c"]


class _Losses(NamedTuple):
    """Losses of each example, (b,)."""

    total: jax.Array
    hybrid: HybridLoss
    clip: jax.Array | None

    def named(self) -> dict[str, jax.Array]:
        named = {"loss": self.total, "mse": self.hybrid.mse, "vb": self.hybrid.vb}
        return named if self.clip is None else named | {"clip_loss": self.clip}


class Denoising:
    """The denoising objective of a run.

    Args:
        config: the run.
        clip: the CLIP of train.clip_run: for image embeddings that batches lack, for
            text.encoder clip, and for train.clip_loss_weight above 0, where batches hold
            `clip_tokens` and `clip_token_mask`.
    """

    def __init__(self, config: Config, clip: FrozenClip | None = None) -> None:
        self.config = config
        self.model = config.denoiser
        self.network: Network[GlideModel] = glide_network(self.model)
        self.frozen: Params = {} if clip is None else clip.params
        self._clip = clip
        diffusion = config.diffusion
        self.timestep_count = diffusion.steps
        self.schedule = Schedule.of(diffusion)
        self._weights = None
        if diffusion.weighting == "min-snr":
            self._weights = min_snr_weights(self.schedule, diffusion.min_snr_gamma)

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
        draw_key, dropout_key = jax.random.split(key)
        draws = self._draw(draw_key, batch, history)
        dropout = dropout_key if self.model.unet.dropout > 0 else None

        def mean_loss(
            params: Params, part: tuple[Batch, _Draws, Int[Array, "b"]]
        ) -> tuple[jax.Array, _Losses]:
            batch, draws, places = part
            key = None if dropout is None else jax.random.fold_in(dropout, places[0])
            losses = self._losses(params, frozen, batch, draws, key, platform)
            return jnp.mean(draws.weights * losses.total), losses

        inputs = batch, draws, jnp.arange(len(draws.t))
        grads, losses = mean_gradient(mean_loss, params, inputs, self.config.train.micro_batches)
        metrics = {name: jnp.mean(value) for name, value in losses.named().items()}
        metrics["loss"] = jnp.mean(draws.weights * losses.total)
        return BatchGradient(grads, metrics, draws.t, losses.total)

    def validate(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        key: PRNGKeyArray,
        platform: Platform = ANY_PLATFORM,
    ) -> Validation:
        """See `objective.Objective`."""
        t_key, key = jax.random.split(key)
        draws = self._draw(key, batch, None)
        draws = draws._replace(
            t=timestep_sampling.stratified(t_key, len(draws.t), self.schedule.steps),
            embedding_given=jnp.ones_like(draws.embedding_given),
        )
        parts = self.config.train.micro_batches

        def losses(part: tuple[Batch, _Draws]) -> _Losses:
            batch, draws = part
            return self._losses(params, frozen, batch, draws, None, platform)

        found = jax.lax.map(losses, split_micro_batches((batch, draws), parts))
        return Validation(draws.t, merge_micro_batches(found).named())

    def constrain(self, params: Params) -> Params:
        """See `objective.Objective`: there is no constraint."""
        return params

    def _draw(self, key: PRNGKeyArray, batch: Batch, history: LossHistory | None) -> _Draws:
        t_key, eps_key, low_res_key = jax.random.split(key, 3)
        b, T = len(batch["image"]), self.schedule.steps
        weights = jnp.ones(b)
        if history is not None:
            t, weights = timestep_sampling.draw(t_key, b, history)
        elif self.config.diffusion.timesteps == "rising":
            t = timestep_sampling.rising(t_key, b, T)
        else:
            t = timestep_sampling.uniform(t_key, b, T)
        eps = jax.random.normal(eps_key, batch["image"].shape)
        low_res = None
        if self.model.low_res_px:
            px = batch["image"].shape[1] // self.model.upscale_factor
            settings = self.config.data.low_res
            blur_key, t_key, eps_key = jax.random.split(low_res_key, 3)
            low_res = _LowResDraws(
                blur_px=settings.blur_px * jax.random.uniform(blur_key, (b,)),
                t=timestep_sampling.uniform(t_key, b, max(settings.noise_steps, 1)),
                eps=jax.random.normal(eps_key, (b, px, px, 3)),
            )
        given_key = jax.random.fold_in(key, 3)  # the draws above are those of a base model
        given = jax.random.bernoulli(given_key, 1 - self.config.data.embedding_dropout, (b,))
        return _Draws(t, weights, eps, low_res, given)

    def _losses(
        self,
        params: Params,
        frozen: Params,
        batch: Batch,
        draws: _Draws,
        dropout_key: PRNGKeyArray | None,
        platform: Platform,
    ) -> _Losses:
        image = to_float(batch["image"])  # (b, h, w, 3)
        x_t = q_sample(self.schedule, image, draws.t, draws.eps)
        model = self.network.bind(params, platform)
        text = self._text(model, frozen, batch, image, draws, platform)
        parameterization, out = self._predict(model, batch, image, x_t, text, draws, dropout_key)
        hybrid = hybrid_loss(
            parameterization,
            image,
            draws.t,
            draws.eps,
            x_t,
            out,
            self._weights,
            learned_variance=self.model.learned_variance,
        )
        if self._clip is None or not self.config.train.clip_loss_weight:
            return _Losses(hybrid.loss, hybrid, None)
        predicted, _ = split_output(out)
        x_0 = parameterization.x_0(predicted, x_t, draws.t)
        clip_loss = self._clip_loss(self._clip, frozen, x_0, batch, platform)
        alpha_bar = jnp.asarray(self.schedule.alpha_bar, jnp.float32)[draws.t]  # (b,)
        total = hybrid.loss + self.config.train.clip_loss_weight * alpha_bar * clip_loss
        return _Losses(total, hybrid, clip_loss)

    def _text(
        self,
        model: GlideModel,
        frozen: Params,
        batch: Batch,
        image: Image,
        draws: _Draws,
        platform: Platform,
    ) -> TextFeatures:
        """What a model is conditioned on beside images: captions, embeddings, noise of low_res."""
        low_res_t = draws.low_res.t if draws.low_res and self.model.low_res_noise else None
        tokens, mask = batch["tokens"], batch["token_mask"]
        states: TextStates | None = None
        if self.model.text.encoder == "clip":
            states = self._required_clip.embed_text(frozen, tokens, mask, platform)
        text = model.encode_text(tokens, mask, low_res_t, states)
        if not self.model.image_embedding_width:
            return text
        if "image_embedding" in batch:
            embedding = batch["image_embedding"]
        else:
            shown = to_float(batch["clip_image"]) if "clip_image" in batch else image
            embedding = self._required_clip.embed_image(frozen, shown, platform)
        return model.add_image(text, embedding, draws.embedding_given)

    @property
    def _required_clip(self) -> FrozenClip:
        if self._clip is None:
            raise ValueError("this decoder needs the CLIP of train.clip_run")
        return self._clip

    def _predict(
        self,
        model: GlideModel,
        batch: Batch,
        image: Image,
        x_t: Image,
        text: TextFeatures,
        draws: _Draws,
        dropout_key: PRNGKeyArray | None,
    ) -> tuple[Parameterization, ModelOutput]:
        """The network's output for x_t, conditioned on the batch, and its parameterization."""
        inpaint = self.model.inpaint
        condition = model.condition(
            self._low_res(batch, image, draws.low_res),
            known=image if inpaint else None,
            mask=batch["mask"].astype(jnp.float32) if inpaint else None,
        )
        diffusion = self.config.diffusion
        guess = model.upsampled_low_res(condition) if diffusion.low_res_std else None
        parameterization = Parameterization.of(diffusion, guess)
        x = parameterization.network_input(x_t, draws.t)
        return parameterization, model(x, draws.t, text, condition, dropout_key)

    def _clip_loss(
        self, clip: FrozenClip, frozen: Params, x_0: Image, batch: Batch, platform: Platform
    ) -> Float[Array, "b"]:
        """1 - cos(caption, predicted x_0); 0 for dropped captions."""
        image = clip.embed_image(frozen, jnp.clip(x_0, -1, 1), platform)
        tokens, mask = batch["clip_tokens"], batch["clip_token_mask"]
        text = clip.embed_text(frozen, tokens, mask, platform).embedding
        return jnp.where(batch["token_mask"].any(-1), 1 - cosine(image, text), 0)

    def _low_res(
        self, batch: Batch, image: Image, draws: _LowResDraws | None
    ) -> Float[Array, "b h2 w2 3"] | None:
        """Augmented low-resolution images, for an upsampler."""
        if draws is None:
            return None
        if "low_res" in batch:
            low_res = to_float(batch["low_res"])
        else:
            low_res = area_average(image, image.shape[1] // self.model.upscale_factor)
        if self.config.data.low_res.blur_px:
            low_res = gaussian_blur(low_res, draws.blur_px)
        if not self.model.low_res_noise:
            return low_res
        return q_sample(self.schedule, low_res, draws.t, draws.eps)
