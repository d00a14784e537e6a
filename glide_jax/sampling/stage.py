"""One trained model, ready to draw: a base model or an upsampler, made for inpainting or not."""

import dataclasses
import logging
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, UInt8
from tqdm import tqdm

from glide_jax.config import Config, SampleConfig
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.transforms import to_float
from glide_jax.diffusion.samplers import sampler_plan
from glide_jax.diffusion.schedule import Schedule
from glide_jax.errors import UserError
from glide_jax.images import to_uint8
from glide_jax.parallel.sharding import infer, local_mesh
from glide_jax.runs.folder import Run
from glide_jax.sampling.clip import ClipStage
from glide_jax.sampling.programs import Inputs, Programs, chunk_size, constants
from glide_jax.shapes import Params

logger = logging.getLogger(__name__)

MAX_BATCH = 16
"""Images a device that are drawn at a time, unless the caller says how many."""

Weights = Mapping[str, np.ndarray | jax.Array]
"""Parameters by name, wherever they are."""


class Known(NamedTuple):
    """Images of which a part is known."""

    pixels: UInt8[np.ndarray, "b h w 3"]
    mask: Bool[np.ndarray, "b h w 1"]
    """True where `pixels` are known, False where the model is to paint."""

    def put_back(self, images: UInt8[np.ndarray, "b h w 3"]) -> UInt8[np.ndarray, "b h w 3"]:
        """`images`, but the known pixels as they were."""
        return np.where(self.mask, self.pixels, images)


class Conditions(NamedTuple):
    """What images are drawn from beside their captions; None where there is nothing."""

    low_res: UInt8[np.ndarray, "b h2 w2 3"] | None = None
    """An upsampler's smaller images."""
    known: Known | None = None
    """Pixels to keep."""
    start: UInt8[np.ndarray, "b h w 3"] | None = None
    """Images to start from, instead of from noise alone (SDEdit, arXiv 2108.01073)."""


class Stage:
    """A trained model ready to draw.

    Args:
        config: of the run.
        params: usually the moving average, on devices or the host.
        tokenizer: the run's own.
        fsdp: devices of this process over which the parameters are shared out, for a model that
            one has no room for; 1 is a copy on each.

    Raises:
        UserError: fsdp does not divide the devices.
    """

    def __init__(
        self, config: Config, params: Weights, tokenizer: Tokenizer, fsdp: int = 1
    ) -> None:
        self.config = config
        self.model = config.denoiser
        self.tokenizer = tokenizer
        self._mesh = local_mesh(fsdp)
        self.use(params)
        self.programs = Programs(config, self._mesh)

    @classmethod
    def load(cls, run: Run, fsdp: int = 1) -> "Stage":
        """Loads a run's EMA parameters and tokenizer.

        Args:
            run: of a base model or an upsampler.
            fsdp: as of the class.

        Raises:
            UserError: the run is a CLIP's, its weights do not match its config, or fsdp does not
                divide the devices.
        """
        params = run.weights(infer(run.network.shapes, local_mesh(fsdp)))
        return cls(run.config, params, run.tokenizer, fsdp)

    def use(self, params: Weights) -> None:
        """Draws with these parameters from now on."""
        self.params: Params = jax.device_put(params, infer(params, self._mesh))

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
        """Draws an image for each prompt.

        Args:
            prompts: b captions; an empty one is unconditional.
            seeds: b of them. An image depends on its prompt, its seed, its conditions and the
                settings, not on the images drawn with it.
            settings: the run's own, `self.config.sample`, or `changed_settings` of them.
            conditions: one row an image, at the model's resolution.
            negative_prompt: what guidance leads away from; the empty caption unless given.
            strength: how much of the noise `conditions.start` is given, in (0, 1].
            clip: guides if settings.clip_guidance_scale is not 0.
            batch_size: images at a time, made a multiple of the devices if it is above 1; at most
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
        if size > 1:  # shared out evenly; what is too much repeats the last image
            size = -(-size // self._mesh.size) * self._mesh.size
        require_usable(self.config, settings)
        if not 0 < strength <= 1:
            raise UserError(f"strength {strength} must be above 0 and at most 1")
        if settings.clip_guidance_scale:
            self._require_fitting(clip)
        if self.model.low_res_px and conditions.low_res is None:
            raise UserError("this is an upsampler: it needs images to enlarge (--low-res)")
        if self.model.inpaint and conditions.known is None:
            raise UserError("this model is made for inpainting: it needs an image and a mask")

        rows = Schedule.of(self.config.diffusion, settings.steps).steps
        if conditions.start is not None:
            rows = math.ceil(round(strength * rows, 6))  # 0.55 * 100 is a little above 55
        schedule = Schedule.of(self.config.diffusion, settings.steps).first(rows)
        guides = clip if settings.clip_guidance_scale else None
        inputs = self._inputs(prompts, seeds, conditions, guides)
        tokens, mask = self.tokenizer.encode([negative_prompt], self.model.text.length)
        negative = jnp.asarray(tokens), jnp.asarray(mask)
        scales = jnp.float32(settings.guidance_scale), jnp.float32(settings.clip_guidance_scale)
        options = constants(settings, rows)
        total = sampler_plan(settings.sampler, schedule, settings.eta).calls
        calls = chunk_size(total)
        images = []
        batches = range(0, len(prompts), size)
        bar = tqdm(total=len(batches) * total, unit="step", disable=not progress, leave=False)
        for first_image in batches:
            # The last batch is filled up with its last image, to fit the compiled programs.
            some = np.minimum(np.arange(first_image, first_image + size), len(prompts) - 1)
            batch = jax.tree.map(lambda x, some=some: x[some], inputs)
            batch = jax.device_put(batch, self.programs.placement(size))
            conditioned, state = self.programs.begin(self.params, batch, negative, **options)
            for first in range(0, total, calls):
                state = self.programs.advance(
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
            images.append(drawn[: len(prompts) - first_image])
        bar.close()
        return np.concatenate(images)

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
    ) -> Inputs:
        def image(pixels: np.ndarray | None, px: int) -> jax.Array | None:
            if pixels is None:
                return None
            if pixels.shape != (len(prompts), px, px, 3):
                raise UserError(
                    f"images of shape {pixels.shape}, but {(len(prompts), px, px, 3)} are needed"
                )
            return jnp.asarray(to_float(pixels))

        px = self.model.resolution_px
        before, length = self.tokenizer.truncated, self.model.text.length
        tokens, token_mask = self.tokenizer.encode(list(prompts), length)
        if self.tokenizer.truncated > before:
            too_long = self.tokenizer.truncated - before
            logger.warning("%d prompts are longer than %d tokens: cut off", too_long, length)
        return Inputs(
            jnp.asarray(tokens),
            jnp.asarray(token_mask),
            jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32)),
            image(conditions.low_res, self.model.low_res_px or px),
            image(None if conditions.known is None else conditions.known.pixels, px),
            None if conditions.known is None else jnp.float32(conditions.known.mask),
            image(conditions.start, px),
            None if clip is None else clip.encode_text(prompts),
        )


def require_usable(config: Config, settings: SampleConfig) -> None:
    """Raises UserError if a run's model cannot be drawn from with these settings."""
    schedule = Schedule.of(config.diffusion, settings.steps)
    sampler_plan(settings.sampler, schedule, settings.eta)
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
