"""One trained denoiser, ready to sample: a base model or an upsampler, for inpainting or not."""

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, UInt8
from tqdm import tqdm

from glide_jax.config import Config, SampleConfig
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.transforms import to_float
from glide_jax.diffusion.schedule import Schedule
from glide_jax.errors import UserError
from glide_jax.images import to_uint8
from glide_jax.parallel.sharding import infer, local_mesh, replicated
from glide_jax.runs.folder import Run
from glide_jax.sampling.arguments import (
    MAX_BATCH_SIZE,
    require_fraction,
    require_seeds,
    require_whole,
)
from glide_jax.sampling.buckets import bucket, equal_part
from glide_jax.sampling.chunks import Chunk, Recipe, Values, chunks
from glide_jax.sampling.clip import ClipScorer
from glide_jax.sampling.programs import Inputs, Programs
from glide_jax.sampling.settings import require_guide, require_usable
from glide_jax.shapes import Params

logger = logging.getLogger(__name__)

MAX_BATCH = 16
"""Default number of images per device and batch."""

Weights = Mapping[str, np.ndarray | jax.Array]
"""Parameters by name, on devices or the host."""


class Known(NamedTuple):
    """Images to inpaint, with the mask of their known pixels."""

    pixels: UInt8[np.ndarray, "b h w 3"]
    mask: Bool[np.ndarray, "b h w 1"]
    """True where `pixels` are known, False where the model inpaints."""

    def put_back(self, images: UInt8[np.ndarray, "b h w 3"]) -> UInt8[np.ndarray, "b h w 3"]:
        """`images` with the known pixels in place."""
        return np.where(self.mask, self.pixels, images)


class Conditions(NamedTuple):
    """Images that condition sampling beside the captions, one row per sample; None for none."""

    low_res: UInt8[np.ndarray, "b h2 w2 3"] | None = None
    """Low-resolution images, for an upsampler."""
    known: Known | None = None
    """Images to inpaint."""
    start: UInt8[np.ndarray, "b h w 3"] | None = None
    """Images to start from, noised, instead of from noise alone (SDEdit, arXiv 2108.01073)."""


class _Task(NamedTuple):
    """What all batches of a call of `Stage.sample` share."""

    negative: tuple[np.ndarray, np.ndarray]
    values: Values
    chunks: list[Chunk]
    guide: ClipScorer | None
    bar: tqdm


class Stage:
    """A trained denoiser: parameters on devices, tokenizer and compiled programs.

    Args:
        config: of the run.
        params: usually the EMA parameters.
        tokenizer: of the run.
        fsdp: devices of this process over which the parameters are sharded, for a model too large
            for one device; 1 keeps a copy on each.

    Raises:
        UserError: fsdp does not divide the number of devices.
    """

    def __init__(
        self, config: Config, params: Weights, tokenizer: Tokenizer, fsdp: int = 1
    ) -> None:
        self.config = config
        self.model = config.denoiser
        self.tokenizer = tokenizer
        self._mesh = local_mesh(fsdp)
        self.programs = Programs.of(self.model, config.diffusion, self._mesh)
        self.use(params)
        self._compiled: set[tuple[Recipe, int, bool]] = set()
        # Accelerators get the next batch before the last is read. CPU devices might deadlock: the
        # programs of two batches at a time, with collectives, share their threads.
        self._queued = 0 if self._mesh.devices.flat[0].platform == "cpu" else 1

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
        _ = run.config.denoiser  # before the weights, which may be large
        params = run.weights(infer(run.network.shapes, local_mesh(fsdp)))
        return cls(run.config, params, run.tokenizer, fsdp)

    def use(self, params: Weights) -> None:
        """Replaces the parameters; stores them with the types of `Network.storage`."""
        self.params: Params = self.programs.place(params)

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        settings: SampleConfig,
        conditions: Conditions = Conditions(),  # noqa: B008 (immutable)
        *,
        negative_prompt: str = "",
        strength: float | int = 1.0,
        clip: ClipScorer | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> UInt8[np.ndarray, "b h w 3"]:
        """Samples an image for each prompt.

        Args:
            prompts: b captions; an empty one is unconditional.
            seeds: b seeds. An image depends on its prompt, its seed, its conditions and the
                settings, not on the rest of the batch.
            settings: the run's own, `self.config.sample`, or `changed_settings` of them.
            conditions: at the model's resolution.
            negative_prompt: what guidance leads away from; the empty caption by default.
            strength: fraction of the steps taken from `conditions.start`, in (0, 1].
            clip: the guide, if settings.clip_guidance_scale is not 0.
            batch_size: of a batch, rounded up to a multiple of the devices if above 1; more images
                are equal batches of at most this size. None is MAX_BATCH per device, or a `bucket`.
            progress: show a progress bar over the steps.

        Returns:
            The images, with the known pixels of `conditions` exactly as they were.

        Raises:
            UserError: impossible settings, or conditions that do not fit the model.
        """
        size = self._batch_size(prompts, seeds, batch_size)
        guide = clip if settings.clip_guidance_scale else None
        self._require_sampleable(settings, conditions, strength, clip)
        plan = self.programs.plan(settings, self._rows(settings, conditions, strength))
        inputs = self._inputs(prompts, seeds, conditions, guide)
        negative = self.tokenizer.encode([negative_prompt], self.model.text.length)
        values = jax.device_put(Values.of(settings, plan.schedule), replicated(self._mesh))
        batches = -(-len(prompts) // size)
        total = batches * plan.calls
        with tqdm(total=total, unit="step", disable=not progress, leave=False) as bar:
            task = _Task(negative, values, chunks(plan, settings), guide, bar)
            sampled = self._sample_batches(inputs, batches, size, task)[: len(prompts)]
        return sampled if conditions.known is None else conditions.known.put_back(sampled)

    def _sample_batches(
        self, inputs: Mapping[str, np.ndarray | None], batches: int, size: int, task: _Task
    ) -> UInt8[np.ndarray, "b h w 3"]:
        """Images of all batches; the last repeats the last image, to fit the compiled programs."""
        images: list[np.ndarray] = []
        queue: deque[tuple[jax.Array, int]] = deque()

        def fetch() -> None:
            x_0, last_calls = queue.popleft()
            images.append(_on_host(x_0))
            task.bar.update(last_calls)

        for start in range(0, batches * size, size):
            which = np.arange(start, start + size)
            chosen = {
                name: None if x is None else x[np.minimum(which, len(x) - 1)]
                for name, x in inputs.items()
            }
            batch = Inputs(**jax.device_put(chosen, self.programs.placement(size)))
            queue.append(self._dispatch(batch, task))
            if len(queue) > self._queued:
                fetch()
        while queue:
            fetch()
        return np.concatenate(images)

    def _rows(
        self, settings: SampleConfig, conditions: Conditions, strength: float | int
    ) -> int | None:
        """Rows of the schedule to visit; None for all."""
        if conditions.start is None:
            return None
        rows = Schedule.of(self.config.diffusion, settings.steps).steps
        # 0.55 * 100 is a little above 55, and must not be 56.
        return max(math.ceil(round(strength * rows, 6)), 1)

    def _dispatch(self, batch: Inputs, task: _Task) -> tuple[jax.Array, int]:
        """Queues the programs of a batch.

        With a progress bar, one chunk is queued while the one before it runs.

        Returns:
            x_0, still to be computed, and the number of calls that the bar does not show yet.
        """
        _, values, parts, guide, bar = task
        guided = any(chunk.recipe.guided for chunk in parts)
        history = parts[0].recipe.solver.history
        if not self._is_compiled(parts[0].recipe, batch, guide):
            bar.set_description("compiling")
        conditioned, state = self.programs.begin(
            self.params, batch, task.negative, values, guided=guided, history=history
        )
        captions = conditioned._replace(negative=None)
        shown_late = 0
        for recipe, table, calls in parts:
            compiled = self._is_compiled(recipe, batch, guide)
            if not compiled:
                bar.set_description("compiling")
            before = state
            state = self.programs.advance(
                self.params,
                None if guide is None else guide.params,
                batch.of_steps,
                conditioned if recipe.guided else captions,
                state,
                values,
                table,
                np.int32(calls),
                clip=None if guide is None else guide.network,
                recipe=recipe,
            )
            if not compiled:
                self._compiled.add((recipe, len(batch.seeds), guide is not None))
                bar.set_description("sampling")
            if not bar.disable:
                jax.block_until_ready(before)
                bar.update(shown_late)
            shown_late = calls
        return state.x_t, shown_late

    def _is_compiled(self, recipe: Recipe, batch: Inputs, guide: ClipScorer | None) -> bool:
        return (recipe, len(batch.seeds), guide is not None) in self._compiled

    def _batch_size(
        self, prompts: Sequence[str], seeds: Sequence[int], batch_size: int | None
    ) -> int:
        """Images per batch, divisible by the devices. Raises UserError."""
        if not prompts:
            raise UserError("no prompts: give at least one")
        if len(seeds) != len(prompts):
            raise UserError(f"{len(seeds)} seeds for {len(prompts)} prompts: give one each")
        require_seeds(seeds)
        devices = self._mesh.size
        limit = MAX_BATCH * devices
        if batch_size is not None:
            size = require_whole("batch_size", batch_size, 1, MAX_BATCH_SIZE)
            limit = size if size == 1 else -(-size // devices) * devices
            if len(prompts) <= limit:
                return limit  # a command's last, smaller batch needs no program of its own
        return min(bucket(equal_part(len(prompts), limit), devices), limit)

    def _require_sampleable(
        self,
        settings: SampleConfig,
        conditions: Conditions,
        strength: float | int,
        clip: ClipScorer | None,
    ) -> None:
        """Raises UserError if the model cannot be sampled with these arguments."""
        require_usable(self.config, settings)
        require_fraction("strength", strength)
        if settings.clip_guidance_scale:
            if clip is None:
                raise UserError("clip_guidance_scale needs a CLIP: load one with the model")
            require_guide(self.config, clip.config, clip.diffusion)
        if self.model.low_res_px and conditions.low_res is None:
            raise UserError("this is an upsampler: it needs low-resolution images (--low-res)")
        if self.model.inpaint and conditions.known is None:
            raise UserError("this is an inpainting model: it needs an image and a mask")

    def _inputs(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        conditions: Conditions,
        clip: ClipScorer | None,
    ) -> dict[str, np.ndarray | None]:
        """The fields of `Inputs` for all images, on the host. Raises UserError."""

        def image(pixels: np.ndarray | None, px: int) -> np.ndarray | None:
            if pixels is None:
                return None
            if pixels.shape != (len(prompts), px, px, 3):
                raise UserError(
                    f"images have shape {pixels.shape}, but must have {(len(prompts), px, px, 3)}"
                )
            return to_float(pixels)

        px = self.model.resolution_px
        before, length = self.tokenizer.truncated, self.model.text.length
        tokens, token_mask = self.tokenizer.encode(list(prompts), length)
        if self.tokenizer.truncated > before:
            too_long = self.tokenizer.truncated - before
            logger.warning("prompts truncated to %d tokens: %d", length, too_long)
        low_res, known, start = conditions
        return {
            "tokens": tokens,
            "token_mask": token_mask,
            "seeds": np.asarray(seeds, np.uint32),
            "low_res": image(low_res, self.model.low_res_px or px),
            "known": image(None if known is None else known.pixels, px),
            "mask": None if known is None else known.mask.astype(np.float32),
            "start": image(start, px),
            "clip_text": None if clip is None else np.asarray(clip.encode_text(prompts)),
        }


def _on_host(x_0: jax.Array) -> UInt8[np.ndarray, "b h w 3"]:
    """Images of a batch, once they are sampled. Raises UserError if they are not finite."""
    images = np.asarray(x_0)
    if not np.isfinite(images).all():
        raise UserError(
            "sampling gave numbers that are not finite: the weights are damaged, or a setting "
            "is extreme (scales, temperature)"
        )
    return to_uint8(images)
