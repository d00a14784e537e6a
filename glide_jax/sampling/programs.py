"""The two compiled programs that sample a batch.

`begin` computes once what does not depend on x_t: encoded text, conditions and the first noise.
`advance` runs a chunk of the denoiser's calls; about ten chunks make a batch, so that the host can
show progress in between. Prompts, seeds, `Values` and the tables of the calls, and so the number of
steps, are arguments. Only another `Recipe`, batch size or kind of condition compiles another
program. The mesh may be of devices that this machine does not have, as in glide_jax.plan.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from glide_jax.config import DiffusionConfig, ModelConfig, SampleConfig
from glide_jax.diffusion.guidance import classifier_free
from glide_jax.diffusion.loop import (
    Calls,
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
from glide_jax.models.glide import GlideModel, LastStepModel, TextFeatures, glide_network
from glide_jax.models.network import Network
from glide_jax.models.platform import Platform
from glide_jax.parallel.sharding import batch_sharding, infer, replicated
from glide_jax.sampling.chunks import Recipe, Values
from glide_jax.shapes import Denoiser, Image, Params, TextStates, TokenMask, Tokens

T = TypeVar("T")
LOW_RES_NOISE = 2**31 - 2
"""Step index of the random key for the noise on low-resolution images; no sampler reaches it."""
UPSAMPLER = 2**31
"""An upsampler folds this plus its resolution into the key of a seed, so that its noise is not the
base model's. Above all step indices."""


class Captions(NamedTuple):
    """Tokenized captions."""

    tokens: Tokens
    mask: TokenMask
    states: TextStates | None = None
    """Of a CLIP, for a decoder that reads them; tokens and mask are not read then."""


class Inputs(NamedTuple):
    """The arguments of `begin` with one row per image."""

    tokens: Tokens
    token_mask: TokenMask
    seeds: UInt32[Array, "b"]
    low_res: Image | None
    known: Image | None
    mask: Float[Array, "b h w 1"] | None
    start: Image | None
    clip_text: Float[Array, "b d"] | None
    states: TextStates | None = None
    embedding: Float[Array, "b d"] | None = None
    """For unCLIP's decoder."""
    has_embedding: Bool[Array, "b"] | None = None
    """False: the caption alone, with the learned null embedding."""
    noise: Image | None = None
    """x_T, if it is not the seeds' own."""

    @property
    def of_steps(self) -> "StepInputs":
        """Those that `advance` reads: other low-resolution or start images compile nothing."""
        return StepInputs(self.seeds, self.known, self.mask, self.clip_text)


class StepInputs(NamedTuple):
    """The arguments of `advance` with one row per image; see `Inputs`."""

    seeds: UInt32[Array, "b"]
    known: Image | None
    mask: Float[Array, "b h w 1"] | None
    clip_text: Float[Array, "b d"] | None


class Conditioned(NamedTuple):
    """The denoiser's conditioning, b rows each."""

    text: TextFeatures
    """Of the prompts."""
    negative: TextFeatures | None
    """Of the negative prompt; None without classifier-free guidance."""
    condition: Float[Array, "b h w c"] | None


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
        self.begin = jax.jit(self._begin, static_argnames=("guided", "history"))
        """`(params, inputs, negative, values, *, guided, history) -> (conditioned, state)`

        `negative` is the negative prompt, one row of `Captions`; `guided`, whether any chunk is;
        `history`, the solver's.
        """
        self.noise = jax.jit(self._noise)
        """`seeds -> (b, h, w, 3)`: x_T of seeds, at temperature 1."""
        self.advance = jax.jit(self._advance, static_argnames=("recipe", "clip"))
        """`(params, clip_params, inputs, conditioned, state, values, table, calls, *, recipe, clip)
        -> state`

        Makes the calls of a `Chunk`. `clip` is the guiding CLIP's network or None.
        """

    @staticmethod
    @lru_cache(maxsize=8)
    def of(model: ModelConfig, diffusion: DiffusionConfig, mesh: Mesh) -> "Programs":
        """The programs of a model, shared by all stages that sample it: compiled once."""
        return Programs(model, diffusion, mesh)

    def plan(self, settings: SampleConfig, rows: int | None = None) -> SamplerPlan:
        """The sampler's plan.

        Args:
            settings: of sampling.
            rows: of the respaced schedule to visit, the first ones in SDEdit; all unless given.
        """
        schedule = Schedule.of(self.diffusion, settings.steps)
        schedule = schedule if rows is None else schedule.first(rows)
        return sampler_plan(settings.sampler, schedule, settings.eta)

    @property
    def storage(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of the parameters that the programs take, see `Network.storage`."""
        return self.network.storage(self._sharded)

    def place(self, params: Mapping[str, np.ndarray | jax.Array]) -> Params:
        """Parameters on the mesh, with the types of `storage`."""
        return jax.device_put(self.network.stored(params, self._sharded), infer(params, self.mesh))

    def placement(self, images: int) -> NamedSharding:
        """Sharding of a batch: over all devices if they divide it, else a copy on each."""
        divide = images % self.mesh.size == 0
        return batch_sharding(self.mesh) if divide else replicated(self.mesh)

    def _platform(self, images: int) -> Platform:
        """The platform of a program for a batch of this size."""
        return self._replicated if images % self.mesh.size else self._sharded

    def _begin(
        self,
        params: Params,
        inputs: Inputs,
        negative: tuple[Any, ...],
        values: Values,
        *,
        guided: bool,
        history: int,
    ) -> tuple[Conditioned, State]:
        model = self.network.bind(params, self._platform(len(inputs.tokens)))
        captions = Captions(inputs.tokens, inputs.token_mask, inputs.states)
        embedding, given = inputs.embedding, inputs.has_embedding
        low_res, low_res_t = self._noised_low_res(inputs, values)
        condition = model.condition(
            low_res,
            inputs.known if self.model.inpaint else None,
            inputs.mask if self.model.inpaint else None,
        )
        if guided:
            captions = jax.tree.map(
                lambda x, row: jnp.concatenate([x, jnp.broadcast_to(row, x.shape)]),
                captions,
                Captions(*negative),
            )
            # Guidance leads away from the null embedding and the negative prompt.
            unconditional = None if given is None else jnp.zeros_like(given)
            low_res_t, embedding, given = jax.tree.map(
                lambda *halves: jnp.concatenate(halves),
                (low_res_t, embedding, given),
                (low_res_t, embedding, unconditional),
            )

        x_T = inputs.noise
        if x_T is None:
            x_T = values.temperature * self._noise(inputs.seeds)
        if inputs.start is not None:
            x_T = values.start_alpha * inputs.start + values.start_noise * x_T
        states = () if captions.states is None else (captions.states,)
        text = model.encode_text(captions.tokens, captions.mask, low_res_t, *states)
        if embedding is not None:
            text = model.add_image(text, embedding, given)
        empty = None
        if guided:
            text, empty = (
                jax.tree.map(lambda x, half=half: jnp.split(x, 2)[half], text) for half in (0, 1)
            )
        return self._placed((Conditioned(text, empty, condition), begin(x_T, history)), len(x_T))

    def _noise(self, seeds: UInt32[Array, "b"]) -> Image:
        px = self.model.resolution_px
        return initial_noise(self._keys(seeds), (px, px, 3))

    def _noised_low_res(
        self, inputs: Inputs, values: Values
    ) -> tuple[Image | None, Int[Array, "b"] | None]:
        """An upsampler's low-resolution images with settings.low_res_noise, and its step."""
        low_res = inputs.low_res if self.model.low_res_px else None
        if low_res is None or not self.model.low_res_noise:
            return low_res, None
        t = jnp.full(len(low_res), values.low_res_noise)
        _, h, w, c = low_res.shape
        noise = per_image_noise(self._keys(inputs.seeds), (h, w, c))(jnp.int32(LOW_RES_NOISE))
        return q_sample(Schedule.of(self.diffusion), low_res, t, noise), t

    def _advance(
        self,
        params: Params,
        clip_params: Params | None,
        inputs: StepInputs,
        conditioned: Conditioned,
        state: State,
        values: Values,
        table: Calls,
        calls: Int[Array, ""],
        *,
        recipe: Recipe,
        clip: Network[Clip] | None,
    ) -> State:
        px = self.model.resolution_px
        platform = self._platform(len(state.x_t))
        model = self.network.bind(params, platform)
        denoise = self._denoiser(model, conditioned, values, recipe)
        threshold: OnX0 | None = {
            "static": static_threshold,
            "dynamic": dynamic_threshold(values.dynamic_threshold),
            "none": None,
        }[recipe.threshold]
        known, mask = inputs.known, inputs.mask

        def put_back(x_0: jax.Array) -> jax.Array:
            assert known is not None and mask is not None
            return mask * known + (1 - mask) * x_0

        gradient = None
        if clip is not None:
            assert clip_params is not None and inputs.clip_text is not None
            bound = clip.bind(clip_params, platform)
            gradient = similarity_gradient(bound, inputs.clip_text, values.clip_guidance_scale)
        state = advance(
            denoise,
            recipe.solver,
            state,
            table,
            per_image_noise(self._keys(inputs.seeds), (px, px, 3)),
            Hooks(threshold, None if known is None else put_back, gradient),
            count=calls,
        )
        return self._placed(state, len(state.x_t))

    def _placed(self, rows: T, images: int) -> T:
        """`rows` (b, ...), sharded alike by both programs: otherwise `advance` compiles again."""
        return jax.lax.with_sharding_constraint(rows, self.placement(images))

    def _denoiser(
        self,
        model: GlideModel | LastStepModel,
        conditioned: Conditioned,
        values: Values,
        recipe: Recipe,
    ) -> Denoiser:
        """The model's denoiser of eps, with classifier-free guidance if the recipe has it."""
        text, negative, condition = conditioned
        diffusion = self.diffusion
        guess = model.upsampled_low_res(condition) if diffusion.low_res_std else None
        if recipe.guided:
            text, condition = jax.tree.map(
                lambda *halves: jnp.concatenate(halves), (text, condition), (negative, condition)
            )
        network = model.denoiser(text, condition)
        if recipe.guided:
            # Guidance acts on the network's own prediction, v or eps, as arXiv 2305.08891 does.
            network = classifier_free(
                network, values.guidance_scale, rescale=values.guidance_rescale
            )
        return Parameterization.of(diffusion, guess).denoiser(network)

    def _keys(self, seeds: UInt32[Array, "b"]) -> Key[Array, "b"]:
        """A random key for each image, from its seed and, of an upsampler, from its resolution."""
        keys = jax.vmap(jax.random.key)(seeds)
        if not self.model.low_res_px:
            return keys
        salt = UPSAMPLER + self.model.resolution_px
        return jax.vmap(lambda key: jax.random.fold_in(key, salt))(keys)
