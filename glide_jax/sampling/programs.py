"""The two compiled programs that sample a batch.

`begin` computes once what does not depend on x_t: encoded text, conditions and the first noise.
`advance` runs a chunk of the denoiser's calls; about ten chunks make a batch, so that the host can
show progress in between. Prompts and seeds are arguments of `begin`, and guidance scales of
`advance`: their values never recompile. Another `Recipe` does, and so does turning guidance on or
off (guidance_scale 1, clip_guidance_scale 0). The mesh may be of devices that this machine does not
have, as in glide_jax.plan.
"""

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from glide_jax.config import DiffusionConfig, ModelConfig, SampleConfig
from glide_jax.diffusion.guidance import classifier_free
from glide_jax.diffusion.loop import (
    Hooks,
    OnX0,
    State,
    advance,
    begin,
    dynamic_threshold,
    initial_noise,
    per_image_noise,
    static_threshold,
)
from glide_jax.diffusion.parameterization import Parameterization
from glide_jax.diffusion.process import q_sample
from glide_jax.diffusion.samplers import SamplerPlan, sampler_plan
from glide_jax.diffusion.schedule import Schedule
from glide_jax.models.clip import Clip, similarity_gradient
from glide_jax.models.glide import GlideModel, TextFeatures, glide_network
from glide_jax.models.network import Network
from glide_jax.models.platform import Platform
from glide_jax.parallel.sharding import batch_sharding, replicated
from glide_jax.shapes import Denoiser, Image, Params, TokenMask, Tokens

LOW_RES_NOISE = 2**31 - 2
"""Step index of the random key for the noise on low-resolution images; no sampler reaches it."""
UPSAMPLER = 2**31
"""An upsampler folds this plus its resolution into the key of a seed, so that its noise is not the
base model's. Above all step indices."""


class Inputs(NamedTuple):
    """The arguments of both programs with one row per image."""

    tokens: Tokens
    token_mask: TokenMask
    seeds: UInt32[Array, "b"]
    low_res: Image | None
    known: Image | None
    mask: Float[Array, "b h w 1"] | None
    start: Image | None
    clip_text: Float[Array, "b d"] | None


class Conditioned(NamedTuple):
    """The denoiser's conditioning; classifier-free guidance doubles its rows."""

    text: TextFeatures
    condition: Float[Array, "b h w c"] | None


@dataclass(frozen=True)
class Recipe:
    """The static arguments of both programs, which are compiled once per recipe."""

    settings: SampleConfig
    """With neutral guidance scales: the scales are traced."""
    rows: int
    """Rows of the respaced schedule to visit: all of them, or the first ones in SDEdit."""
    guided: bool
    """Whether classifier-free guidance doubles the batch."""

    @classmethod
    def of(cls, settings: SampleConfig, rows: int) -> "Recipe":
        """The recipe for these settings."""
        neutral = dataclasses.replace(settings, guidance_scale=1.0, clip_guidance_scale=0.0)
        return cls(neutral, rows, settings.guidance_scale != 1)


class Programs:
    """The programs of a model, compiled when they are first called.

    Args:
        model, diffusion: of the run.
        mesh: from `sharding.local_mesh`.
    """

    def __init__(self, model: ModelConfig, diffusion: DiffusionConfig, mesh: Mesh) -> None:
        self.model = model
        self.diffusion = diffusion
        self.mesh = mesh
        self.network = glide_network(self.model)
        self._sharded = Platform.of(mesh, batch_sharding(mesh), training=False)
        self._replicated = Platform.of(mesh, None, training=False)
        self.begin = jax.jit(self._begin, static_argnames="recipe")
        """`(params, inputs, negative, *, recipe) -> (conditioned, state)`

        `negative` is the negative prompt's tokens and mask, one row each.
        """
        self.advance = jax.jit(self._advance, static_argnames=("recipe", "clip", "calls"))
        """`(params, clip_params, inputs, conditioned, state, scales, first, *, recipe, clip, calls)
        -> state`

        Makes `calls` calls of the denoiser from call number `first` on. `scales` are the
        classifier-free and the CLIP guidance scale; `clip` is the guiding CLIP's network or None.
        """

    @staticmethod
    @lru_cache(maxsize=8)
    def of(model: ModelConfig, diffusion: DiffusionConfig, mesh: Mesh) -> "Programs":
        """The programs of a model, shared by all stages that sample it: compiled once."""
        return Programs(model, diffusion, mesh)

    def denoiser_calls(self, recipe: Recipe) -> int:
        """Number of denoiser calls of a batch."""
        return self._plan(recipe).calls

    def placement(self, images: int) -> NamedSharding:
        """Sharding of a batch: over all devices if they divide it, else a copy on each."""
        divide = images % self.mesh.size == 0
        return batch_sharding(self.mesh) if divide else replicated(self.mesh)

    def _platform(self, images: int) -> Platform:
        """The platform of a program for a batch of this size."""
        return self._replicated if images % self.mesh.size else self._sharded

    def _plan(self, recipe: Recipe) -> SamplerPlan:
        settings = recipe.settings
        schedule = Schedule.of(self.diffusion, settings.steps).first(recipe.rows)
        return sampler_plan(settings.sampler, schedule, settings.eta)

    def _begin(
        self,
        params: Params,
        inputs: Inputs,
        negative: tuple[Int[Array, "1 l"], Bool[Array, "1 l"]],
        *,
        recipe: Recipe,
    ) -> tuple[Conditioned, State]:
        model = self.network.bind(params, self._platform(len(inputs.tokens)))
        tokens, token_mask = inputs.tokens, inputs.token_mask
        low_res, low_res_t = self._noised_low_res(inputs, recipe)
        condition = model.condition(
            low_res,
            inputs.known if self.model.inpaint else None,
            inputs.mask if self.model.inpaint else None,
        )
        if recipe.guided:
            tokens = jnp.concatenate([tokens, jnp.broadcast_to(negative[0], tokens.shape)])
            token_mask = jnp.concatenate(
                [token_mask, jnp.broadcast_to(negative[1], token_mask.shape)]
            )
            if condition is not None:
                condition = jnp.concatenate([condition, condition])
            if low_res_t is not None:
                low_res_t = jnp.concatenate([low_res_t, low_res_t])

        plan = self._plan(recipe)
        px = self.model.resolution_px
        x_T = recipe.settings.temperature * initial_noise(self._keys(inputs), (px, px, 3))
        if inputs.start is not None:
            last = jnp.full(x_T.shape[0], recipe.rows - 1)
            x_T = q_sample(plan.schedule, inputs.start, last, x_T)
        state = begin(plan, x_T)
        text = model.encode_text(tokens, token_mask, low_res_t)
        return Conditioned(text, condition), state

    def _noised_low_res(
        self, inputs: Inputs, recipe: Recipe
    ) -> tuple[Image | None, Int[Array, "b"] | None]:
        """An upsampler's low-resolution images with settings.low_res_noise, and its step."""
        low_res = inputs.low_res if self.model.low_res_px else None
        if low_res is None or not self.model.low_res_noise:
            return low_res, None
        t = jnp.full(len(low_res), recipe.settings.low_res_noise)
        _, h, w, c = low_res.shape
        noise = per_image_noise(self._keys(inputs), (h, w, c))(jnp.int32(LOW_RES_NOISE))
        return q_sample(Schedule.of(self.diffusion), low_res, t, noise), t

    def _advance(
        self,
        params: Params,
        clip_params: Params | None,
        inputs: Inputs,
        conditioned: Conditioned,
        state: State,
        scales: tuple[Float[Array, ""], Float[Array, ""]],
        first: Int[Array, ""],
        *,
        recipe: Recipe,
        clip: Network[Clip] | None,
        calls: int,
    ) -> State:
        px, settings = self.model.resolution_px, recipe.settings
        platform = self._platform(len(state.x_t))
        model = self.network.bind(params, platform)
        denoise = self._denoiser(model, conditioned, scales[0], recipe)
        threshold: OnX0 = static_threshold
        if settings.dynamic_threshold:
            threshold = dynamic_threshold(settings.dynamic_threshold)
        known, mask = inputs.known, inputs.mask

        def put_back(x_0: jax.Array) -> jax.Array:
            assert known is not None and mask is not None
            return mask * known + (1 - mask) * x_0

        gradient = None
        if clip is not None:
            assert clip_params is not None and inputs.clip_text is not None
            bound = clip.bind(clip_params, platform)
            gradient = similarity_gradient(bound, inputs.clip_text, scales[1])
        return advance(
            denoise,
            self._plan(recipe),
            state,
            per_image_noise(self._keys(inputs), (px, px, 3)),
            Hooks(threshold, None if known is None else put_back, gradient),
            first=first,
            calls=calls,
        )

    def _denoiser(
        self,
        model: GlideModel,
        conditioned: Conditioned,
        guidance_scale: Float[Array, ""],
        recipe: Recipe,
    ) -> Denoiser:
        """The model's denoiser of eps, with classifier-free guidance if the recipe has it."""
        network, condition = model.denoiser(*conditioned), conditioned.condition
        if recipe.guided:
            # Guidance acts on the network's own prediction, v or eps, as arXiv 2305.08891 does.
            network = classifier_free(
                network,
                guidance_scale,
                interval=recipe.settings.guidance_interval,
                rescale=recipe.settings.guidance_rescale or None,
            )
            condition = None if condition is None else condition[: len(condition) // 2]
        diffusion = self.diffusion
        guess = model.upsampled_low_res(condition) if diffusion.low_res_std else None
        return Parameterization.of(diffusion, guess).denoiser(network)

    def _keys(self, inputs: Inputs) -> Key[Array, "b"]:
        """A random key for each image, from its seed and, of an upsampler, from its resolution."""
        keys = jax.vmap(jax.random.key)(inputs.seeds)
        if not self.model.low_res_px:
            return keys
        salt = UPSAMPLER + self.model.resolution_px
        return jax.vmap(lambda key: jax.random.fold_in(key, salt))(keys)


def chunk_size(total: int) -> int:
    """Denoiser calls per run of `Programs.advance`: at most a tenth, in chunks of equal size."""
    parts = next(parts for parts in range(min(total, 10), total + 1) if total % parts == 0)
    return total // parts
