"""`Glide`: what a script or a notebook calls.

from glide_jax import Glide
glide = Glide.load("runs/scenes_tiny")
pictures = glide.generate(["a red star", "a blue ring"], seed=0)
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, UInt8
from tqdm import tqdm

from glide_jax.config import Config
from glide_jax.data.tokenizer import Tokenizer
from glide_jax.diffusion.guidance import classifier_free
from glide_jax.diffusion.process import denoiser_of_velocity
from glide_jax.diffusion.samplers import initial_noise, per_image_noise, sample
from glide_jax.diffusion.schedule import Schedule
from glide_jax.errors import UserError
from glide_jax.models.glide import glide_network
from glide_jax.pictures import to_uint8
from glide_jax.shapes import Image, Params, TokenMask, Tokens
from glide_jax.training.checkpoint import TOKENIZER, Checkpoints, load_run_config

MAX_BATCH = 16
"""Prompts beyond this many are drawn one batch after the other, unless the caller says how many."""


class Glide:
    """A trained model ready to draw.

    Args:
        config: of the run.
        params: usually the moving average.
        tokenizer: the run's own.
    """

    def __init__(self, config: Config, params: Params, tokenizer: Tokenizer) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self._mesh = jax.make_mesh(
            (jax.local_device_count(),), ("data",), (AxisType.Auto,), devices=jax.local_devices()
        )
        self.params = jax.device_put(params, NamedSharding(self._mesh, PartitionSpec()))
        self._network = glide_network(config.model)
        self._bar: tqdm | None = None
        self._sample = jax.jit(
            self._sample_batch,
            static_argnames=("steps", "sampler", "eta", "guided", "progress"),
        )

    @classmethod
    def load(cls, run_dir: str | Path) -> "Glide":
        """Loads a run folder: its newest whole checkpoint's averaged parameters.

        Raises:
            UserError: not a run folder, or its checkpoint does not match its config.
        """
        folder = Path(run_dir)
        config = load_run_config(folder)
        params = Checkpoints(folder).restore_ema(glide_network(config.model).shapes)
        return cls(config, params, Tokenizer.load(folder / TOKENIZER))

    def generate(
        self,
        prompts: Sequence[str],
        *,
        negative_prompt: str = "",
        guidance_scale: float | int | None = None,
        steps: str | int | None = None,
        sampler: str | None = None,
        eta: float | int | None = None,
        seed: int | Sequence[int] = 0,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> UInt8[np.ndarray, "b h w 3"]:
        """Draws a picture for each prompt.

        One compiled program serves all prompts, seeds, negative prompts and guidance scales of
        the same batch size.

        Args:
            prompts: b captions; an empty one is unconditional.
            negative_prompt: what guidance leads away from; the empty caption unless given.
            guidance_scale: 1 is no guidance (and half the work), 0 ignores the prompts. This and
                the next three default to the run's own settings.
            steps: how many, or a respacing such as '10,10,3,2,2'.
            sampler: a key of glide_jax.diffusion.samplers.SAMPLERS.
            eta: noise of DDIM.
            seed: one for all pictures, or one each. A picture depends on its prompt, its seed and
                the settings, not on the pictures drawn with it.
            batch_size: pictures at a time; at most 16 unless given.
            progress: show a bar over the steps.

        Returns:
            (b, h, w, 3) 8-bit levels.

        Raises:
            UserError: settings that do not exist or cannot work.
        """
        defaults = self.config.sample
        scale = float(defaults.guidance_scale if guidance_scale is None else guidance_scale)
        steps = str(defaults.steps if steps is None else steps)
        seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
        if not prompts:
            raise UserError("no prompts: give at least one")
        if len(seeds) != len(prompts):
            raise UserError(f"{len(seeds)} seeds for {len(prompts)} prompts: give one seed, or all")
        if not np.isfinite(scale):
            raise UserError(f"guidance scale {scale} is not a number that can be used")
        size = min(len(prompts), MAX_BATCH) if batch_size is None else batch_size
        if size < 1:
            raise UserError(f"batch size {size} must be at least 1")

        length = self.config.model.text.length
        tokens, mask = self.tokenizer.encode([*prompts, negative_prompt], length)
        draw = partial(
            self._sample,
            self.params,
            negative=(tokens[-1:], mask[-1:]),
            scale=scale,
            steps=steps,
            sampler=defaults.sampler if sampler is None else sampler,
            eta=float(defaults.eta if eta is None else eta),
            guided=scale != 1,
            progress=progress,
        )
        batches = -(-len(prompts) // size)
        step_count = Schedule.create(
            self.config.diffusion.schedule, self.config.diffusion.steps, steps
        ).steps
        pictures = []
        self._bar = tqdm(total=batches * step_count, unit="step", disable=not progress)
        with self._bar:
            for start in range(0, len(prompts), size):
                # The last batch is filled up with its last prompt, to fit the compiled program.
                rows = np.minimum(np.arange(start, start + size), len(prompts) - 1)
                keys = jax.vmap(jax.random.key)(jnp.asarray([seeds[row] for row in rows]))
                text, keys = self._shared_out(((tokens[rows], mask[rows]), keys))
                images = draw(text=text, keys=keys)
                pictures.append(to_uint8(np.asarray(images))[: len(prompts) - start])
            jax.effects_barrier()
        return np.concatenate(pictures)

    def _sample_batch(
        self,
        params: Params,
        text: tuple[Tokens, TokenMask],
        negative: tuple[Int[Array, "1 l"], Array],
        keys: Key[Array, "b"],
        scale: Float[Array, ""],
        *,
        steps: str,
        sampler: str,
        eta: float,
        guided: bool,
        progress: bool,
    ) -> Image:
        """The compiled program. Text is encoded before the loop over steps, once."""
        diffusion = self.config.diffusion
        schedule = Schedule.create(diffusion.schedule, diffusion.steps, steps)
        model = self._network.bind(params)
        tokens, mask = text
        if guided:
            tokens = jnp.concatenate([tokens, jnp.broadcast_to(negative[0], tokens.shape)])
            mask = jnp.concatenate([mask, jnp.broadcast_to(negative[1], mask.shape)])
        denoise = model.denoiser(model.encode_text(tokens, mask))
        if diffusion.prediction == "v":
            whole = Schedule.create(diffusion.schedule, diffusion.steps)
            denoise = denoiser_of_velocity(whole, denoise)
        px = self.config.model.unet.resolution_px
        return sample(
            classifier_free(denoise, scale) if guided else denoise,
            schedule,
            initial_noise(keys, (px, px, 3)),
            per_image_noise(keys, (px, px, 3)),
            sampler=sampler,
            eta=eta,
            on_step=self._tick if progress else None,
        )

    def _shared_out(self, batch: Any) -> Any:
        """Gives each device its part of the pictures, where they divide."""
        size = len(jax.tree.leaves(batch)[0])
        divides = size % self._mesh.size == 0
        spec = PartitionSpec("data") if divides else PartitionSpec()
        return jax.device_put(batch, NamedSharding(self._mesh, spec))

    def _tick(self, _: int) -> None:
        if self._bar is not None:
            self._bar.update()
