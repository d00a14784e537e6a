"""`Glide`: what a script or a notebook calls.

from glide_jax import Glide
glide = Glide.load("runs/scenes_tiny")
images = glide.generate(["a red star", "a blue ring"], seed=0)
"""

import gc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from glide_jax.config import ClipConfig, Config, SampleConfig
from glide_jax.errors import UserError
from glide_jax.runs.folder import Run
from glide_jax.sampling.clip import ClipStage
from glide_jax.sampling.stage import Conditions, Known, Stage, changed_settings
from glide_jax.sampling.user_images import Fit, square_image, square_known
from glide_jax.storage import AnyPath

ROLES = ("base", "upsample", "base-inpaint", "upsample-inpaint", "clip")
"""What a model can be for, and the names of the run folders in a set of models."""

Images = UInt8[np.ndarray, "b h w 3"]
Seed = int | np.integer | Sequence[int]
Drawn = UInt8[np.ndarray, "b_drawn h_drawn w_drawn 3"]


class Glide:
    """Trained models, working together: a base model draws, an upsampler enlarges, CLIP judges.

    Any of them may be missing; each is loaded when it is first needed. All methods take and
    return 8-bit sRGB images. Their `settings` are fields of `SampleConfig`, and change those
    of the model that draws first; an upsampler goes by its own run's.

    Args:
        runs: by role, one of ROLES.
        one_at_a_time: free each model before the next one is loaded, for small memories.
        fsdp: devices over which each model's parameters are shared out, see `Stage`.
    """

    def __init__(
        self,
        runs: dict[str, Run],
        *,
        one_at_a_time: bool = False,
        fsdp: int = 1,
    ) -> None:
        self.runs = runs
        self.last_seeds: list[int] = []
        """Of the images that were drawn last, one each: drawn again, they are the same."""
        self._one_at_a_time = one_at_a_time
        self._fsdp = fsdp
        self._loaded: dict[str, Any] = {}

    @classmethod
    def load(cls, *folders: str | AnyPath, one_at_a_time: bool = False, fsdp: int = 1) -> "Glide":
        """Finds the models of these folders, each a run's or one of several runs' folders.

        Args:
            folders: what train.py, glide_jax.export and glide_jax.convert write;
                "demo" and "demo/base" name models shipped with the package, see `resolve_run`.
            one_at_a_time: free each model before the next one is loaded, for small memories.
            fsdp: devices over which each model's parameters are shared out, see `Stage`.

        Raises:
            UserError: there is no run in a folder, or two runs have the same role.
        """
        runs: dict[str, Run] = {}
        for run in (run for folder in folders for run in Run.open_all(folder)):
            role = role_of(run.config)
            if role in runs:
                raise UserError(
                    f"{runs[role].path} and {run.path} are both {role} models: give one"
                )
            runs[role] = run
        if not runs:
            raise UserError("no models: give at least one run folder")
        return cls(runs, one_at_a_time=one_at_a_time, fsdp=fsdp)

    def has(self, role: str) -> bool:
        """Whether there is a model for this, one of ROLES."""
        return role in self.runs

    def config(self, role: str) -> Config:
        """The configuration of the model for this, one of ROLES.

        Raises:
            UserError: there is none.
        """
        if not self.has(role):
            there = ", ".join(self.runs)
            hint = ""
            if role == "base" and self.has("upsample"):
                hint = "; an upsampler enlarges images that you have: upsample, --low-res"
            if role == "base" and self.has("base-inpaint"):
                hint = "; an inpainting model paints in an image: inpaint, --image"
            raise UserError(f"this needs a model for {role}; there is one for {there} only{hint}")
        return self.runs[role].config

    def settings(self, role: str, **changes: Any) -> SampleConfig:
        """How the model for this samples, with these changes. Raises UserError."""
        return changed_settings(self.config(role).sample, **changes)

    def stage(self, role: str) -> Stage:
        """The model that draws for this, one of ROLES, loaded. Raises UserError."""
        return self._load(role, Stage)

    @property
    def clip(self) -> ClipStage:
        """The CLIP, loaded. Raises UserError if there is none."""
        return self._load("clip", ClipStage)

    def free(self) -> None:
        """Forgets all loaded models; they are loaded again when needed."""
        self._loaded.clear()
        gc.collect()  # a stage and its compiled programs refer to each other

    def generate(
        self,
        prompts: Sequence[str],
        *,
        n: int = 1,
        keep: int | None = None,
        negative_prompt: str = "",
        seed: Seed = 0,
        upsample: bool | None = None,
        batch_size: int | None = None,
        progress: bool = False,
        **settings: Any,
    ) -> Drawn:
        """Draws images for prompts.

        Args:
            prompts: b captions; an empty one is unconditional.
            n: images for each prompt, with seeds seed, seed + 1, ...
            keep: so many of the n are kept, those that CLIP finds closest to the prompt, best
                first; they are chosen before they are enlarged.
            negative_prompt: what guidance leads away from; the empty caption unless given.
            seed: one for all prompts, or one each. An image depends on its prompt, its seed and
                the settings, not on the images drawn with it.
            upsample: enlarge; unless given, if there is an upsampler.
            batch_size: images at a time.
            progress: show a bar over the steps.
            settings: such as guidance_scale, steps, sampler: the fields of `SampleConfig`.

        Returns:
            (b * n or b * keep, h, w, 3), a prompt's images one after the other.

        Raises:
            UserError: settings that do not exist or cannot work, or a model that is not there.
        """
        options = {
            "negative_prompt": negative_prompt,
            "batch_size": batch_size,
            "progress": progress,
        }

        def draw(role: str, prompts: list[str], seeds: list[int], low_res: Any) -> Drawn:
            changes = settings if low_res is None else {}
            conditions = Conditions(low_res=low_res)
            return self._draw(role, prompts, seeds, changes, conditions, **options)

        return self._best_enlarged(draw, "base", "upsample", prompts, seed, n, keep, upsample)

    def upsample(
        self,
        images: Images,
        prompts: Sequence[str],
        *,
        seed: Seed = 0,
        batch_size: int | None = None,
        progress: bool = False,
        **settings: Any,
    ) -> Drawn:
        """Enlarges any images of the upsampler's smaller size, with the help of captions.

        Args:
            images: (b, h, w, 3).
            prompts: b captions, or one for all.
            seed, batch_size, progress, settings: as in `generate`.

        Returns:
            (b, h, w, 3), larger.

        Raises:
            UserError: as `generate`, or the images are of another size.
        """
        prompts, self.last_seeds = repeat_prompts(broadcast_prompts(prompts, len(images)), seed, 1)
        return self._draw(
            "upsample",
            prompts,
            self.last_seeds,
            settings,
            Conditions(low_res=images),
            batch_size=batch_size,
            progress=progress,
        )

    def inpaint(
        self,
        image: UInt8[np.ndarray, "h w 3"],
        known: Bool[np.ndarray, "h_mask w_mask"],
        prompts: Sequence[str],
        *,
        n: int = 1,
        keep: int | None = None,
        fit: Fit = "crop",
        negative_prompt: str = "",
        seed: Seed = 0,
        upsample: bool | None = None,
        batch_size: int | None = None,
        progress: bool = False,
        **settings: Any,
    ) -> Drawn:
        """Paints what is not known of an image, once for each prompt.

        With models made for inpainting where they are there; others are held to the known pixels
        at every step. Paint again on what this returns, with another mask and prompt, to edit a
        image step by step.

        Args:
            image: of any size; made square as `fit` says, and resized to the models'.
            known: True where the image stays, False where it is painted over.
            prompts: b captions of the whole result.
            fit: "crop" takes the largest square from the middle; "pad" puts the whole image
                into a square, whose remaining sides are painted; "stretch" ignores the aspect.
            n, keep, negative_prompt, seed, upsample, batch_size, progress, settings: as in
                `generate`.

        Returns:
            As `generate`; known pixels are exactly those of the image at that size.

        Raises:
            UserError: as `generate`; the mask is of another size than the image; or all of the
                square is known, so that there is nothing to paint.
        """
        small = "base-inpaint" if self.has("base-inpaint") else "base"
        large = "upsample-inpaint" if self.has("upsample-inpaint") else "upsample"
        if image.shape[:2] != known.shape:
            raise UserError(
                f"the mask is {known.shape[1]} x {known.shape[0]} pixels, but the image "
                f"{image.shape[1]} x {image.shape[0]}"
            )
        options = {
            "negative_prompt": negative_prompt,
            "batch_size": batch_size,
            "progress": progress,
        }

        def draw(role: str, prompts: list[str], seeds: list[int], low_res: Any) -> Drawn:
            px = self.config(role).denoiser.resolution_px
            mask = square_known(known, px, fit)
            if mask.all():
                raise UserError("there is nothing to paint: all of the square is known")
            kept = Known(
                _repeated(square_image(image, px, fit), len(prompts)),
                _repeated(mask[:, :, None], len(prompts)),
            )
            changes = settings if low_res is None else {}
            conditions = Conditions(low_res=low_res, known=kept)
            drawn = self._draw(role, prompts, seeds, changes, conditions, **options)
            return kept.put_back(drawn)

        return self._best_enlarged(draw, small, large, prompts, seed, n, keep, upsample)

    def edit(
        self,
        image: UInt8[np.ndarray, "h w 3"],
        prompts: Sequence[str],
        *,
        strength: float | int = 0.7,
        n: int = 1,
        keep: int | None = None,
        fit: Fit = "crop",
        negative_prompt: str = "",
        seed: Seed = 0,
        upsample: bool | None = None,
        batch_size: int | None = None,
        progress: bool = False,
        **settings: Any,
    ) -> Drawn:
        """Draws on from an image or a sketch. SDEdit, arXiv 2108.01073.

        The image is noised part of the way, and the noise taken away again by what the prompt
        asks for.

        Args:
            image: of any size; made square as `fit` says.
            prompts: b captions, each giving n images.
            strength: share of the steps that are taken: little keeps the image, 1 forgets it.
            fit: as in `inpaint`, but "pad" fills with gray.
            n, keep, negative_prompt, seed, upsample, batch_size, progress, settings: as in
                `generate`.

        Returns:
            As `generate`.

        Raises:
            UserError: as `generate`, or strength is not in (0, 1].
        """
        options = {
            "negative_prompt": negative_prompt,
            "batch_size": batch_size,
            "progress": progress,
        }

        def draw(role: str, prompts: list[str], seeds: list[int], low_res: Any) -> Drawn:
            if low_res is not None:
                return self._draw(role, prompts, seeds, {}, Conditions(low_res=low_res), **options)
            start = square_image(image, self.config(role).denoiser.resolution_px, fit)
            conditions = Conditions(start=_repeated(start, len(prompts)))
            return self._draw(
                role, prompts, seeds, settings, conditions, strength=strength, **options
            )

        return self._best_enlarged(draw, "base", "upsample", prompts, seed, n, keep, upsample)

    def rank(
        self, images: Sequence[UInt8[np.ndarray, "h w 3"]] | Images, prompts: Sequence[str]
    ) -> Float[np.ndarray, "b"]:
        """How well each image fits its prompt by CLIP: cosines in [-1, 1].

        Args:
            images: of any size.
            prompts: one each, or one for all.

        Raises:
            UserError: there is no CLIP.
        """
        return self.clip.scores(images, broadcast_prompts(prompts, len(images)))

    def _draw(
        self,
        role: str,
        prompts: list[str],
        seeds: list[int],
        settings: dict[str, Any],
        conditions: Conditions,
        **options: Any,
    ) -> Drawn:
        sampling = self.settings(role, **settings)
        stage = self.stage(role)
        clip = self.clip if sampling.clip_guidance_scale else None
        return stage.draw(prompts, seeds, sampling, conditions, clip=clip, **options)

    def _best_enlarged(
        self,
        draw: Callable[[str, list[str], list[int], Any], Drawn],
        small: str,
        large: str,
        prompts: Sequence[str],
        seed: Seed,
        n: int,
        keep: int | None,
        upsample: bool | None,
    ) -> Drawn:
        """Draws with the small model, keeps the best, and enlarges them.

        Args:
            draw: `(role, prompts, seeds, smaller images or None) -> images`.
            small, large: roles.
        """
        prompts, seeds = repeat_prompts(prompts, seed, n)
        enlarge = self.has(large) if upsample is None else upsample
        # All that can be known to fail is asked before hours are spent on drawing.
        px = self.config(small).denoiser.resolution_px
        if enlarge and self.config(large).denoiser.low_res_px != px:
            raise UserError(
                f"the {large} model enlarges {self.config(large).denoiser.low_res_px} px, but the "
                f"{small} model draws {px} px"
            )
        if keep is not None:
            self.config("clip")
            if not 1 <= keep <= n:
                raise UserError(f"keep ({keep}) must be between 1 and n ({n})")

        images = draw(small, prompts, seeds, None)
        if keep is not None:
            scores = self.rank(images, prompts).reshape(-1, n)
            order = np.argsort(-scores, axis=1, kind="stable")[:, :keep]
            best = (order + n * np.arange(len(scores))[:, None]).ravel().tolist()
            images = images[best]
            prompts, seeds = [prompts[i] for i in best], [seeds[i] for i in best]
        if enlarge:
            images = draw(large, prompts, seeds, images)
        self.last_seeds = seeds
        return images

    def _load(self, role: str, kind: Any) -> Any:
        if role not in self._loaded:
            self.config(role)
            if self._one_at_a_time:
                self.free()
            self._loaded[role] = kind.load(self.runs[role], self._fsdp)
        return self._loaded[role]


def role_of(config: Config) -> str:
    """What the model of a run is for, one of ROLES."""
    if isinstance(config.model, ClipConfig):
        return "clip"
    size = "upsample" if config.model.low_res_px else "base"
    return f"{size}-inpaint" if config.model.inpaint else size


def repeat_prompts(prompts: Sequence[str], seed: Seed, n: int) -> tuple[list[str], list[int]]:
    """Each prompt n times, and the seeds that go with them.

    Raises:
        UserError: no prompts, n below 1, not one seed each, or a seed that is none.
    """
    if not prompts:
        raise UserError("no prompts: give at least one")
    if n < 1:
        raise UserError(f"n ({n}) must be at least 1")
    seeds: list[int] = np.atleast_1d(seed).tolist()
    if np.ndim(seed) == 0:
        seeds = seeds * len(prompts)
    if len(seeds) != len(prompts):
        raise UserError(f"{len(seeds)} seeds for {len(prompts)} prompts: give one seed, or all")
    seeds = [first + i for first in seeds for i in range(n)]
    if not all(0 <= seed < 2**32 for seed in seeds):
        raise UserError(f"seeds must be in [0, 2**32), not {min(seeds)} to {max(seeds)}")
    return [prompt for prompt in prompts for _ in range(n)], seeds


def broadcast_prompts(prompts: Sequence[str], count: int) -> list[str]:
    """A prompt for each image, of one for all or one each. Raises UserError."""
    prompts = list(prompts) * count if len(prompts) == 1 else list(prompts)
    if len(prompts) != count:
        raise UserError(f"{len(prompts)} prompts for {count} images: give one, or one each")
    return prompts


def _repeated(x: np.ndarray, count: int) -> np.ndarray:
    return np.broadcast_to(x, (count, *x.shape))
