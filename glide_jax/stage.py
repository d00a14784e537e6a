"""One trained model, ready to draw: a base model or an upsampler, made for inpainting or not.

Two compiled programs draw a batch. The first encodes the text and prepares the conditions, once;
the second loops over some of the steps, and runs ten times or so, that one can look on. They serve
any prompts, seeds and guidance scales.
"""

import dataclasses
import logging
import math
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, UInt8
from tqdm import tqdm

from glide_jax.clip_stage import ClipStage
from glide_jax.config import Config, SampleConfig
from glide_jax.data.tokenizer import Tokenizer
from glide_jax.data.transforms import to_float
from glide_jax.diffusion.guidance import classifier_free
from glide_jax.diffusion.process import denoiser_of_velocity, q_sample, velocity_around
from glide_jax.diffusion.samplers import (
    OnX0,
    State,
    advance,
    begin,
    denoiser_calls,
    dynamic_threshold,
    initial_noise,
    per_image_noise,
    static_threshold,
)
from glide_jax.diffusion.schedule import Schedule
from glide_jax.errors import UserError
from glide_jax.models.clip import Clip, similarity_gradient
from glide_jax.models.cpu import drawing_on
from glide_jax.models.glide import TextFeatures, glide_network
from glide_jax.models.network import Network
from glide_jax.pictures import to_uint8
from glide_jax.shapes import Image, Params, TokenMask, Tokens
from glide_jax.training.checkpoint import load_weights
from glide_jax.training.run_folder import TOKENIZER, load_run_config, resolve_run
from glide_jax.training.sharding import local_mesh, replicated

logger = logging.getLogger(__name__)

MAX_BATCH = 16
"""Pictures a device that are drawn at a time, unless the caller says how many."""


LOW_RES_NOISE = 2**31 - 2
"""Stands for a step in drawing the noise of the smaller pictures: no sampler takes as many."""


class Known(NamedTuple):
    """Pictures of which a part is known."""

    pixels: UInt8[np.ndarray, "b h w 3"]
    mask: Bool[np.ndarray, "b h w 1"]
    """True where `pixels` are known, False where the model is to paint."""

    def put_back(self, pictures: UInt8[np.ndarray, "b h w 3"]) -> UInt8[np.ndarray, "b h w 3"]:
        """`pictures`, but the known pixels as they were."""
        return np.where(self.mask, self.pixels, pictures)


class Conditions(NamedTuple):
    """What pictures are drawn from beside their captions; None where there is nothing."""

    low_res: UInt8[np.ndarray, "b h2 w2 3"] | None = None
    """An upsampler's smaller pictures."""
    known: Known | None = None
    """Pixels to keep."""
    start: UInt8[np.ndarray, "b h w 3"] | None = None
    """Pictures to start from, instead of from noise alone (SDEdit, arXiv 2108.01073)."""


class _Inputs(NamedTuple):
    """The compiled program's arguments that differ from picture to picture."""

    tokens: Tokens
    token_mask: TokenMask
    keys: Key[Array, "b"]
    low_res: Image | None
    known: Image | None
    mask: Float[Array, "b h w 1"] | None
    start: Image | None
    clip_text: Float[Array, "b d"] | None


class _Conditioned(NamedTuple):
    """What the network is closed over, for twice as many pictures if it is guided."""

    text: TextFeatures
    condition: Float[Array, "b h w c"] | None


class Stage:
    """A trained model ready to draw.

    Args:
        config: of the run.
        params: usually the moving average.
        tokenizer: the run's own.
    """

    def __init__(self, config: Config, params: Params, tokenizer: Tokenizer) -> None:
        self.config = config
        self.model = config.denoiser
        self.tokenizer = tokenizer
        self._mesh = local_mesh()
        self.use(params)
        self._network = glide_network(self.model)
        self._begin = jax.jit(self._begin_batch, static_argnames=("settings", "rows", "guided"))
        self._advance = jax.jit(
            self._advance_batch, static_argnames=("settings", "rows", "guided", "clip", "calls")
        )

    @classmethod
    def load(cls, run_dir: str | Path) -> "Stage":
        """Loads a run folder, see `resolve_run`: its averaged parameters.

        Raises:
            UserError: not a run folder, or its weights do not match its config.
        """
        run_dir = resolve_run(run_dir)
        config = load_run_config(run_dir)
        params = load_weights(run_dir, glide_network(config.denoiser).shapes)
        return cls(config, params, Tokenizer.load(run_dir / TOKENIZER))

    def use(self, params: Params) -> None:
        """Draws with these parameters from now on."""
        self.params = jax.device_put(params, replicated(self._mesh))

    def draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        settings: SampleConfig,
        conditions: Conditions = Conditions(),  # noqa: B008 (immutable)
        *,
        negative_prompt: str = "",
        strength: float | int = 1.0,
        clip: ClipStage | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> UInt8[np.ndarray, "b h w 3"]:
        """Draws a picture for each prompt.

        Args:
            prompts: b captions; an empty one is unconditional.
            seeds: b of them. A picture depends on its prompt, its seed, its conditions and the
                settings, not on the pictures drawn with it.
            settings: the run's own, `self.config.sample`, or `changed_settings` of them.
            conditions: one row a picture, at the model's resolution.
            negative_prompt: what guidance leads away from; the empty caption unless given.
            strength: how much of the noise `conditions.start` is given, in (0, 1].
            clip: guides if settings.clip_guidance_scale is not 0.
            batch_size: pictures at a time, made a multiple of the devices if it is above 1; at most
                MAX_BATCH a device unless given.
            progress: show a bar over the steps.

        Raises:
            UserError: settings that cannot work, or conditions that the model cannot use.
        """
        if not prompts:
            raise UserError("no prompts: give at least one")
        if len(seeds) != len(prompts):
            raise UserError(f"{len(seeds)} seeds for {len(prompts)} prompts: give one each")
        size = min(len(prompts), MAX_BATCH * self._mesh.size) if batch_size is None else batch_size
        if size < 1:
            raise UserError(f"batch size {size} must be at least 1")
        if size > 1:  # shared out evenly; what is too much repeats the last picture
            size = -(-size // self._mesh.size) * self._mesh.size
        require_usable(self.config, settings)
        if not 0 < strength <= 1:
            raise UserError(f"strength {strength} must be above 0 and at most 1")
        if settings.clip_guidance_scale:
            self._require_fitting(clip)
        if self.model.low_res_px and conditions.low_res is None:
            raise UserError("this is an upsampler: it needs pictures to enlarge (--low-res)")
        if self.model.inpaint and conditions.known is None:
            raise UserError("this model is made for inpainting: it needs a picture and a mask")

        rows = self._schedule(settings).steps
        if conditions.start is not None:
            rows = math.ceil(round(strength * rows, 6))  # 0.55 * 100 is a little above 55
        schedule = self._schedule(settings, rows)
        guides = clip if settings.clip_guidance_scale else None
        inputs = self._inputs(prompts, seeds, conditions, guides)
        tokens, mask = self.tokenizer.encode([negative_prompt], self.model.text.length)
        negative = jnp.asarray(tokens), jnp.asarray(mask)
        # Scales are arguments of the programs, not part of them.
        scales = jnp.float32(settings.guidance_scale), jnp.float32(settings.clip_guidance_scale)
        options = {
            "settings": dataclasses.replace(settings, guidance_scale=1.0, clip_guidance_scale=0.0),
            "rows": rows,
            "guided": settings.guidance_scale != 1,
        }
        total = denoiser_calls(schedule, sampler=settings.sampler, eta=settings.eta)
        calls = _part(total)
        pictures = []
        batches = range(0, len(prompts), size)
        bar = tqdm(total=len(batches) * total, unit="step", disable=not progress, leave=False)
        for first_picture in batches:
            # The last batch is filled up with its last picture, to fit the compiled programs.
            some = np.minimum(np.arange(first_picture, first_picture + size), len(prompts) - 1)
            batch = self._shared_out(jax.tree.map(lambda x, some=some: x[some], inputs))
            conditioned, state = self._begin(self.params, batch, negative, **options)
            for first in range(0, total, calls):
                state = self._advance(
                    self.params,
                    None if guides is None else guides.params,
                    batch,
                    conditioned,
                    state,
                    scales,
                    jnp.int32(first),
                    clip=None if guides is None else guides.network,
                    calls=calls,
                    **options,
                )
                if progress:
                    jax.block_until_ready(state)
                    bar.update(calls)
            drawn = to_uint8(np.asarray(state.x_t))
            pictures.append(drawn[: len(prompts) - first_picture])
        bar.close()
        return np.concatenate(pictures)

    def _schedule(self, settings: SampleConfig, rows: int | None = None) -> Schedule:
        schedule = _schedule(self.config, settings.steps)
        return schedule if rows is None else schedule.first(rows)

    def _require_fitting(self, clip: ClipStage | None) -> None:
        if clip is None:
            raise UserError("clip_guidance_scale needs a CLIP: load one beside the model")
        ours = self.model.resolution_px, self.config.diffusion.steps
        theirs = clip.config.resolution_px, clip.config.steps
        if ours != theirs:
            raise UserError(
                f"this CLIP was made for {theirs[0]} px and {theirs[1]} diffusion steps, the model "
                f"it is to guide for {ours[0]} px and {ours[1]}"
            )

    def _inputs(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        conditions: Conditions,
        clip: ClipStage | None,
    ) -> _Inputs:
        def image(pixels: np.ndarray | None, px: int) -> jax.Array | None:
            if pixels is None:
                return None
            if pixels.shape != (len(prompts), px, px, 3):
                raise UserError(
                    f"pictures of shape {pixels.shape}, but {(len(prompts), px, px, 3)} are needed"
                )
            return jnp.asarray(to_float(pixels))

        px = self.model.resolution_px
        before, length = self.tokenizer.truncated, self.model.text.length
        tokens, token_mask = self.tokenizer.encode(list(prompts), length)
        if self.tokenizer.truncated > before:
            too_long = self.tokenizer.truncated - before
            logger.warning("%d prompts are longer than %d tokens: cut off", too_long, length)
        return _Inputs(
            jnp.asarray(tokens),
            jnp.asarray(token_mask),
            jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32)),
            image(conditions.low_res, self.model.low_res_px or px),
            image(None if conditions.known is None else conditions.known.pixels, px),
            None if conditions.known is None else jnp.float32(conditions.known.mask),
            image(conditions.start, px),
            None if clip is None else clip.encode_text(prompts),
        )

    def _begin_batch(
        self,
        params: Params,
        inputs: _Inputs,
        negative: tuple[Int[Array, "1 l"], Bool[Array, "1 l"]],
        *,
        settings: SampleConfig,
        rows: int,
        guided: bool,
    ) -> tuple["_Conditioned", State]:
        """The first compiled program: all that does not depend on x_t, and what to start from."""
        model = self._network.bind(params)
        tokens, token_mask = inputs.tokens, inputs.token_mask
        low_res = inputs.low_res if self.model.low_res_px else None
        low_res_t = None
        if low_res is not None and self.model.low_res_noise:
            low_res_t = jnp.full(len(low_res), settings.low_res_noise)
            _, h, w, c = low_res.shape
            noise = per_image_noise(inputs.keys, (h, w, c))(jnp.int32(LOW_RES_NOISE))
            low_res = q_sample(_schedule(self.config), low_res, low_res_t, noise)
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

        schedule = self._schedule(settings, rows)
        px = self.model.resolution_px
        x_T = settings.temperature * initial_noise(inputs.keys, (px, px, 3))
        if inputs.start is not None:
            last = jnp.full(x_T.shape[0], rows - 1)
            x_T = q_sample(schedule, inputs.start, last, x_T)
        state = begin(schedule, x_T, sampler=settings.sampler, eta=settings.eta)
        return _Conditioned(model.encode_text(tokens, token_mask, low_res_t), condition), state

    def _advance_batch(
        self,
        params: Params,
        clip_params: Params | None,
        inputs: _Inputs,
        conditioned: "_Conditioned",
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
        """The second compiled program: some of the denoiser's calls, from the `first` on."""
        model = self._network.bind(params)
        denoise = model.denoiser(*conditioned)
        deviation = self.config.diffusion.low_res_deviation
        if deviation:
            guess = model.enlarged(conditioned.condition)
            denoise = velocity_around(_schedule(self.config), denoise, guess, deviation)
        if self.config.diffusion.prediction == "v":
            denoise = denoiser_of_velocity(_schedule(self.config), denoise)
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
            gradient = similarity_gradient(clip.bind(clip_params), inputs.clip_text, scales[1])
        with drawing_on(self._mesh.devices.flat[0].platform):
            return advance(
                denoise,
                self._schedule(settings, rows),
                state,
                per_image_noise(inputs.keys, (px, px, 3)),
                first=first,
                calls=calls,
                sampler=settings.sampler,
                eta=settings.eta,
                threshold=threshold,
                on_x_0=None if known is None else put_back,
                gradient=gradient,
            )

    def _shared_out(self, batch: Any) -> Any:
        """Gives each device its part of the pictures, where they divide."""
        size = len(jax.tree.leaves(batch)[0])
        divides = size % self._mesh.size == 0
        spec = PartitionSpec("data") if divides else PartitionSpec()
        return jax.device_put(batch, NamedSharding(self._mesh, spec))


def _schedule(config: Config, respacing: str | None = None) -> Schedule:
    diffusion = config.diffusion
    return Schedule.create(
        diffusion.schedule,
        diffusion.steps,
        respacing,
        zero_terminal_snr=diffusion.zero_terminal_snr,
    )


def require_usable(config: Config, settings: SampleConfig) -> None:
    """Raises UserError if a run's model cannot be drawn from with these settings."""
    schedule = _schedule(config, settings.steps)
    denoiser_calls(schedule, sampler=settings.sampler, eta=settings.eta)
    if settings.low_res_noise and not config.denoiser.low_res_noise:
        raise UserError(
            "low_res_noise is for upsamplers that are told of it: this model is not "
            "(model.low_res_noise)"
        )
    if not 0 <= settings.low_res_noise < config.diffusion.steps:
        raise UserError(
            f"low_res_noise ({settings.low_res_noise}) must be a step of the schedule, 0 to "
            f"{config.diffusion.steps - 1}"
        )


def changed_settings(settings: SampleConfig, **changes: Any) -> SampleConfig:
    """`settings` with these changes; None changes nothing.

    Raises:
        UserError: a setting that does not exist, is of another type, or cannot work.
    """
    types = typing.get_type_hints(SampleConfig)
    given = {}
    for name, value in changes.items():
        if name not in types:
            raise UserError(f"there is no setting {name}: choose from {', '.join(types)}")
        if value is not None:
            try:
                given[name] = _cast(types[name], value)
            except (TypeError, ValueError):
                raise UserError(f"{name} cannot be {value!r}") from None
    return dataclasses.replace(settings, **given)


def _cast(kind: Any, value: Any) -> Any:
    if typing.get_origin(kind) is tuple:
        return tuple(_cast(part, v) for part, v in zip(typing.get_args(kind), value, strict=True))
    return kind(value)


def _part(total: int) -> int:
    """Calls between two looks at the progress: a tenth of all or less, and all parts are equal."""
    parts = next(parts for parts in range(min(total, 10), total + 1) if total % parts == 0)
    return total // parts
