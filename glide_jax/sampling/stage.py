"""One trained denoiser, ready to sample: a base model, unCLIP's decoder or an upsampler."""

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from glide_jax.config import Config, SampleConfig
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.transforms import to_float
from glide_jax.diffusion.samplers import SamplerPlan, inverse_ddim
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
from glide_jax.sampling.batches import Batches, Task
from glide_jax.sampling.buckets import bucket, equal_part
from glide_jax.sampling.chunks import Values, chunks
from glide_jax.sampling.clip import ClipScorer
from glide_jax.sampling.conditions import Conditions
from glide_jax.sampling.programs import Captions, Programs
from glide_jax.sampling.settings import changed_settings, require_guide, require_usable
from glide_jax.shapes import Params, TextStates

logger = logging.getLogger(__name__)

MAX_BATCH = 16
"""Default number of images per device and batch."""

Weights = Mapping[str, np.ndarray | jax.Array]
"""Parameters by name, on devices or the host."""


class Stage:
    """A trained denoiser: parameters on devices, tokenizer and compiled programs.

    Args:
        config: of the run.
        params: usually the EMA parameters.
        tokenizer: of the run; None for a model without a text transformer.
        fsdp: devices of this process over which the parameters are sharded, for a model too large
            for one device; 1 keeps a copy on each.

    Raises:
        UserError: fsdp does not divide the number of devices.
    """

    def __init__(
        self, config: Config, params: Weights, tokenizer: Tokenizer | None, fsdp: int = 1
    ) -> None:
        self.config = config
        self.model = config.denoiser
        self.tokenizer = tokenizer
        self._mesh = local_mesh(fsdp)
        self.programs = Programs.of(self.model, config.diffusion, self._mesh)
        self.use(params)
        self._batches = Batches(self._mesh)

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
        encoder = run.config.denoiser.text.encoder  # before the weights, which may be large
        params = run.weights(infer(run.network.shapes, local_mesh(fsdp)))
        return cls(run.config, params, run.tokenizer if encoder == "transformer" else None, fsdp)

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
        rounds: bool = True,
    ) -> UInt8[np.ndarray, "b h w 3"] | Float[np.ndarray, "b h w 3"]:
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
            rounds: whether the images have 8-bit levels; otherwise they are floats in [-1, 1], for
                an upsampler of Karlo's.

        Returns:
            The images, with the known pixels of `conditions` exactly as they were.

        Raises:
            UserError: impossible settings, or conditions that do not fit the model.
        """
        self._require_sampleable(settings, conditions, strength, clip)
        plan = self.programs.plan(settings, self._rows(settings, conditions, strength))
        negative = self._captions([negative_prompt], conditions.negative_states)
        parts = chunks(plan, settings, captioned=self.model.text.encoder != "none")
        guide = clip if settings.clip_guidance_scale else None
        read = to_uint8 if rounds else _clipped
        values = Values.of(settings, plan.schedule)
        with self._progress(prompts, seeds, batch_size, plan, progress) as (size, bar):
            inputs = self._inputs(prompts, seeds, conditions, guide)
            task = Task(negative, self._on_devices(values), parts, guide, bar, read)
            sampled = self._batches.run(self.programs, self.params, inputs, size, task)
        return sampled if conditions.known is None else conditions.known.put_back(sampled)

    def invert(
        self,
        images: UInt8[np.ndarray, "b h w 3"],
        prompts: Sequence[str],
        settings: SampleConfig,
        conditions: Conditions = Conditions(),  # noqa: B008 (immutable)
        *,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> Float[np.ndarray, "b h w 3"]:
        """Encodes images: the x_T from which DDIM with eta 0 and no guidance reconstructs them.

        Args:
            images: at the model's resolution.
            prompts: b captions.
            settings: steps, as when the images are sampled again.
            conditions, batch_size, progress: as for `sample`.

        Returns:
            For `Conditions.noise`.

        Raises:
            UserError: as `sample`.
        """
        settings = changed_settings(settings, clip_guidance_scale=0.0)
        self._require_sampleable(settings, conditions, 1.0, None)
        plan = inverse_ddim(Schedule.of(self.config.diffusion, settings.steps))
        parts = chunks(plan, settings, inverts=True)
        values = self._on_devices(Values.of(settings, plan.schedule))
        seeds = [0] * len(prompts)
        with self._progress(prompts, seeds, batch_size, plan, progress) as (size, bar):
            inputs = self._inputs(prompts, seeds, conditions._replace(noise=to_float(images)), None)
            negative = self._captions([""], conditions.negative_states)  # not read
            task = Task(negative, values, parts, None, bar, np.asarray)
            return self._batches.run(self.programs, self.params, inputs, size, task)

    def noise(self, seeds: Sequence[int]) -> Float[np.ndarray, "b h w 3"]:
        """x_T of these seeds, for `Conditions.noise`."""
        require_seeds(seeds)
        return np.asarray(self.programs.noise(np.asarray(seeds, np.uint32)))

    @contextlib.contextmanager
    def _progress(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        batch_size: int | None,
        plan: SamplerPlan,
        progress: bool,
    ) -> Iterator[tuple[int, tqdm]]:
        """The size of the batches, and a bar over the steps of all. Raises UserError."""
        size = self._batch_size(prompts, seeds, batch_size)
        total = -(-len(prompts) // size) * plan.calls
        with tqdm(total=total, unit="step", disable=not progress, leave=False) as bar:
            yield size, bar

    def _on_devices(self, values: Values) -> Values:
        return jax.device_put(values, replicated(self._mesh))

    def _rows(
        self, settings: SampleConfig, conditions: Conditions, strength: float | int
    ) -> int | None:
        """Rows of the schedule to visit; None for all."""
        if conditions.start is None:
            return None
        rows = Schedule.of(self.config.diffusion, settings.steps).steps
        # 0.55 * 100 is a little above 55, and must not be 56.
        return max(math.ceil(round(strength * rows, 6)), 1)

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
        states = conditions.states, conditions.negative_states
        if self.model.text.encoder == "clip" and None in states:
            raise UserError("this decoder reads a CLIP's text states: sample it with UnCLIP")

    def _captions(self, prompts: Sequence[str], states: TextStates | None) -> Captions:
        """Tokenized prompts, or the CLIP's states of them."""
        if states is not None or self.tokenizer is None:
            unread = np.zeros((len(prompts), 1), np.int32)
            return _captions(unread, unread > 0, states)
        before, length = self.tokenizer.truncated, self.model.text.length
        captions = _captions(*self.tokenizer.encode(list(prompts), length))
        if self.tokenizer.truncated > before:
            too_long = self.tokenizer.truncated - before
            logger.warning("prompts truncated to %d tokens: %d", length, too_long)
        return captions

    def _inputs(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        conditions: Conditions,
        clip: ClipScorer | None,
    ) -> dict[str, Any]:
        """The fields of `Inputs` for all images, on the host. Raises UserError."""
        count, width = len(prompts), self.model.image_embedding_width
        tokens, token_mask, states = self._captions(prompts, conditions.states)
        embedding = conditions.embedding
        if width and embedding is None:
            embedding = np.zeros((count, width), np.float32)
        if embedding is not None and embedding.shape != (count, width):
            raise UserError(
                f"image embeddings have shape {embedding.shape}, but must have {(count, width)}"
            )
        given = conditions.embedding is not None
        return {
            "tokens": tokens,
            "token_mask": token_mask,
            "states": states,
            "seeds": np.asarray(seeds, np.uint32),
            "embedding": embedding,
            "has_embedding": np.full(count, given) if width else None,
            "clip_text": None if clip is None else np.asarray(clip.encode_text(prompts)),
            **conditions.images(count, self.model.resolution_px, self.model.low_res_px),
        }


def _clipped(images: Float[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b h w 3"]:
    return np.clip(images, -1, 1)


def _captions(tokens: Any, mask: Any, states: TextStates | None = None) -> Captions:
    """Captions on the host."""
    return Captions(tokens, mask, states)
