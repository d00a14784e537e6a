"""The two compiled programs that draw a batch, for devices that need not be there.

The first encodes the text and prepares the conditions, once; the second loops over some of the
steps, and runs ten times or so, that one can look on. They serve any prompts, seeds and guidance
scales.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int, Key

from glide_jax.config import Config, SampleConfig
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
from glide_jax.models.glide import TextFeatures, glide_network
from glide_jax.models.network import Network
from glide_jax.models.platform import Platform
from glide_jax.parallel.sharding import batch_sharding, replicated
from glide_jax.shapes import Image, Params, TokenMask, Tokens

LOW_RES_NOISE = 2**31 - 2
"""Stands for a step in drawing the noise of the smaller images: no sampler takes as many."""


class Inputs(NamedTuple):
    """The programs' arguments that differ from image to image."""

    tokens: Tokens
    token_mask: TokenMask
    keys: Key[Array, "b"]
    low_res: Image | None
    known: Image | None
    mask: Float[Array, "b h w 1"] | None
    start: Image | None
    clip_text: Float[Array, "b d"] | None


class Conditioned(NamedTuple):
    """What the network is closed over, for twice as many images if it is guided."""

    text: TextFeatures
    condition: Float[Array, "b h w c"] | None


class Programs:
    """The programs of a model, compiled when they are first called.

    Args:
        config: of the run.
        mesh: from `sharding.local_mesh`.
    """

    def __init__(self, config: Config, mesh: Mesh) -> None:
        self.config = config
        self.model = config.denoiser
        self.mesh = mesh
        self.network = glide_network(self.model)
        self._sharded = Platform.of(mesh, batch_sharding(mesh), training=False)
        self._replicated = Platform.of(mesh, None, training=False)
        self.begin = jax.jit(self._begin, static_argnames=("settings", "rows", "guided"))
        """`(params, inputs, negative) -> (conditioned, state)`; see `constants` for the rest."""
        self.advance = jax.jit(
            self._advance, static_argnames=("settings", "rows", "guided", "clip", "calls")
        )
        """`(params, clip_params, inputs, conditioned, state, scales, first) -> state`."""

    def placement(self, images: int) -> NamedSharding:
        """Each device has its part of so many images, where they divide; else all of them."""
        divide = images % self.mesh.size == 0
        return batch_sharding(self.mesh) if divide else replicated(self.mesh)

    def _platform(self, images: int) -> Platform:
        """The platform of a program for a batch of this size."""
        return self._replicated if images % self.mesh.size else self._sharded

    def _plan(self, settings: SampleConfig, rows: int) -> SamplerPlan:
        schedule = Schedule.of(self.config.diffusion, settings.steps).first(rows)
        return sampler_plan(settings.sampler, schedule, settings.eta)

    def _begin(
        self,
        params: Params,
        inputs: Inputs,
        negative: tuple[Int[Array, "1 l"], Bool[Array, "1 l"]],
        *,
        settings: SampleConfig,
        rows: int,
        guided: bool,
    ) -> tuple[Conditioned, State]:
        """The first program: all that does not depend on x_t, and what to start from."""
        model = self.network.bind(params, self._platform(len(inputs.tokens)))
        tokens, token_mask = inputs.tokens, inputs.token_mask
        low_res = inputs.low_res if self.model.low_res_px else None
        low_res_t = None
        if low_res is not None and self.model.low_res_noise:
            low_res_t = jnp.full(len(low_res), settings.low_res_noise)
            _, h, w, c = low_res.shape
            noise = per_image_noise(inputs.keys, (h, w, c))(jnp.int32(LOW_RES_NOISE))
            low_res = q_sample(Schedule.of(self.config.diffusion), low_res, low_res_t, noise)
        condition = model.condition(
            low_res,
            inputs.known if self.model.inpaint else None,
            inputs.mask if self.model.inpaint else None,
        )
        if guided:
            tokens = jnp.concatenate([tokens, jnp.broadcast_to(negative[0], tokens.shape)])
            token_mask = jnp.concatenate(
                [token_mask, jnp.broadcast_to(negative[1], token_mask.shape)]
            )
            if condition is not None:
                condition = jnp.concatenate([condition, condition])
            if low_res_t is not None:
                low_res_t = jnp.concatenate([low_res_t, low_res_t])

        plan = self._plan(settings, rows)
        px = self.model.resolution_px
        x_T = settings.temperature * initial_noise(inputs.keys, (px, px, 3))
        if inputs.start is not None:
            last = jnp.full(x_T.shape[0], rows - 1)
            x_T = q_sample(plan.schedule, inputs.start, last, x_T)
        state = begin(plan, x_T)
        text = model.encode_text(tokens, token_mask, low_res_t)
        return Conditioned(text, condition), state

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
        settings: SampleConfig,
        rows: int,
        guided: bool,
        clip: Network[Clip] | None,
        calls: int,
    ) -> State:
        """The second program: some of the denoiser's calls, from the `first` on."""
        platform = self._platform(state.x_t.shape[0])
        model = self.network.bind(params, platform)
        diffusion = self.config.diffusion
        guess = model.upsampled_low_res(conditioned.condition) if diffusion.low_res_std else None
        denoise = Parameterization.of(diffusion, guess).denoiser(model.denoiser(*conditioned))
        if guided:
            denoise = classifier_free(
                denoise,
                scales[0],
                interval=settings.guidance_interval,
                rescale=settings.guidance_rescale or None,
            )

        px = self.model.resolution_px
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
            self._plan(settings, rows),
            state,
            per_image_noise(inputs.keys, (px, px, 3)),
            Hooks(threshold, None if known is None else put_back, gradient),
            first=first,
            calls=calls,
        )


def constants(settings: SampleConfig, rows: int) -> dict[str, Any]:
    """What the programs are compiled for. Scales are arguments of theirs, not part of them."""
    return {
        "settings": dataclasses.replace(settings, guidance_scale=1.0, clip_guidance_scale=0.0),
        "rows": rows,
        "guided": settings.guidance_scale != 1,
    }


def chunk_size(total: int) -> int:
    """Calls between two looks at the progress: a tenth of all or less, and all parts are equal."""
    parts = next(parts for parts in range(min(total, 10), total + 1) if total % parts == 0)
    return total // parts
