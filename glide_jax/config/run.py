"""All settings of a run: config.json in its folder."""

import math
from dataclasses import dataclass, field
from typing import Any

from glide_jax.config.checks import Settings
from glide_jax.config.data import DataConfig
from glide_jax.config.diffusion import DiffusionConfig
from glide_jax.config.model import ClipConfig, ModelConfig
from glide_jax.config.prior import PriorConfig
from glide_jax.config.sampling import SampleConfig
from glide_jax.config.serialize import flat_settings, from_json, to_json
from glide_jax.config.training import OptimConfig, TrainConfig
from glide_jax.errors import UserError
from glide_jax.storage import AnyPath, read_regular, storage_errors

MAX_CONFIG_BYTES = 2**22
AnyModel = ModelConfig | ClipConfig | PriorConfig
"""The model of a run."""


@dataclass(frozen=True)
class Config(Settings):
    """All settings of a run."""

    model: AnyModel = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def _check(self) -> None:
        if not isinstance(self.model, ModelConfig):
            self._check_no_image_model("CLIP" if isinstance(self.model, ClipConfig) else "prior")
        if isinstance(self.model, PriorConfig):
            self.require(
                self.diffusion.prediction == "eps",
                "diffusion.prediction",
                "is not used by a prior, which predicts the embedding: leave it out",
            )
        if isinstance(self.model, ClipConfig):
            self._check_clip(self.model)
        elif isinstance(self.model, ModelConfig):
            self._check_low_res(self.model)
            self._check_crop(self.model)
            self._check_noise_conditioning(self.model)

    def _check_clip(self, model: ClipConfig) -> None:
        self.require(
            self.train.batch_examples >= 2,
            "train.batch_examples",
            "must be at least 2: a CLIP learns by comparing captions within a batch",
        )
        self.require(
            model.steps in (1, self.diffusion.steps),
            "model.steps",
            f"({model.steps}) must be diffusion.steps ({self.diffusion.steps}), or 1 for "
            "a CLIP of clean images",
        )

    def _check_no_image_model(self, kind: str) -> None:
        for name, ok in {
            "diffusion.low_res_std": not self.diffusion.low_res_std,
            "data.low_res.crop_px": not self.data.low_res.crop_px,
            "train.clip_loss_weight": not self.train.clip_loss_weight,
        }.items():
            self.require(ok, name, f"must be 0 for a {kind}")
        for name, value, default in (
            ("train.trainable", self.train.trainable, "all"),
            ("diffusion.timesteps", self.diffusion.timesteps, "uniform"),
            ("diffusion.weighting", self.diffusion.weighting, "simple"),
        ):
            self.require(value == default, name, f"must be {default} for a {kind}")

    def _check_low_res(self, model: ModelConfig) -> None:
        for name, used in {
            "diffusion.low_res_std": self.diffusion.low_res_std > 0,
            "data.low_res.crop_px": self.data.low_res.crop_px > 0,
            "data.low_res.degradation": self.data.low_res.degradation != "none",
        }.items():
            self.require(model.low_res_px > 0 or not used, name, "is for upsamplers")

    def _check_crop(self, model: ModelConfig) -> None:
        crop_px, unet = self.data.low_res.crop_px, model.unet
        smallest = math.lcm(model.upscale_factor, 2 ** (len(unet.channel_mult) - 1))
        self.require(
            crop_px <= unet.resolution_px and crop_px % smallest == 0,
            "data.low_res.crop_px",
            f"({crop_px}) must be at most model.unet.resolution_px ({unet.resolution_px}) and "
            f"divisible by {smallest}",
        )
        self.require(
            not (crop_px and self.train.clip_loss_weight),
            "train.clip_loss_weight",
            "must be 0 with data.low_res.crop_px: captions describe full images",
        )

    def _check_noise_conditioning(self, model: ModelConfig) -> None:
        for name, step in {
            "data.low_res.noise_steps": self.data.low_res.noise_steps,
            "sample.low_res_noise": self.sample.low_res_noise,
        }.items():
            self.require(
                model.low_res_noise or not step,
                name,
                "needs model.low_res_noise: the model must be conditioned on the noise level",
            )
        steps = self.diffusion.steps
        self.require(
            self.data.low_res.noise_steps <= steps,
            "data.low_res.noise_steps",
            f"({self.data.low_res.noise_steps}) must be at most diffusion.steps ({steps})",
        )
        self.require(
            0 <= self.sample.low_res_noise < steps,
            "sample.low_res_noise",
            f"({self.sample.low_res_noise}) must be a step below diffusion.steps ({steps})",
        )

    @property
    def denoiser(self) -> ModelConfig:
        """The model of a run that generates images. Raises UserError if it is none."""
        if not isinstance(self.model, ModelConfig):
            kind = "CLIP" if isinstance(self.model, ClipConfig) else self.model.kind
            raise UserError(f"this model is a {kind}: a base model or an upsampler is needed")
        return self.model

    @property
    def clip(self) -> ClipConfig:
        """The model of a run that is a CLIP. Raises UserError if it is none."""
        if not isinstance(self.model, ClipConfig):
            raise UserError(
                f"this model is a {self.model.kind}: a CLIP is needed, such as demo/clip"
            )
        return self.model

    @property
    def prior(self) -> PriorConfig:
        """The model of a run that is unCLIP's prior. Raises UserError if it is none."""
        if not isinstance(self.model, PriorConfig):
            raise UserError(f"this model is a {self.model.kind}: a prior is needed")
        return self.model

    @property
    def embedding_width(self) -> int:
        """Channels of the embeddings that a CLIP makes, a prior predicts or a decoder reads.

        0 for models without any.
        """
        if isinstance(self.model, ModelConfig):
            return self.model.image_embedding_width
        return self.model.embedding_width

    def to_json(self) -> str:
        """All settings as JSON."""
        return to_json(self)

    def flat(self) -> dict[str, Any]:
        """Every setting by its dotted name, as in errors and flags."""
        return flat_settings(self)

    @classmethod
    def from_json(cls, text: str, where: str = "config.json") -> "Config":
        """The settings that `to_json` wrote; missing ones take their defaults.

        Args:
            text: JSON.
            where: the name of the file, for errors.

        Raises:
            UserError: not JSON, an unknown setting, or a value of the wrong type.
        """
        return from_json(cls, text, where)

    @classmethod
    def load(cls, path: AnyPath) -> "Config":
        """Reads a config.json. Raises UserError if it cannot be read."""
        with storage_errors("read", path):
            text = read_regular(path, MAX_CONFIG_BYTES).decode("utf-8-sig")
        return cls.from_json(text, str(path))
