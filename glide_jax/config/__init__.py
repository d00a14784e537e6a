"""Every setting of a run, declared once: type, default, unit and source.

Files of configs/ set what differs from the defaults, flags override them
(`train.py --optim.learning-rate 3e-5`), and the run folder's config.json records the result.
"""

from glide_jax.config.data import DataConfig, LowResConfig, MaskConfig
from glide_jax.config.diffusion import DiffusionConfig
from glide_jax.config.model import (
    GROUPS,
    ClipConfig,
    ClipImageConfig,
    ClipTextConfig,
    ModelConfig,
    Remat,
    TextConfig,
    UNetConfig,
)
from glide_jax.config.prior import ClipStatesConfig, PriorConfig
from glide_jax.config.run import AnyModel, Config
from glide_jax.config.sampling import SampleConfig
from glide_jax.config.sources import (
    AnySource,
    Embeddings,
    Folder,
    Mixture,
    MixturePart,
    Scenes,
    Shards,
    Tfds,
    Unknown,
)
from glide_jax.config.training import OptimConfig, TrainConfig

__all__ = [
    "GROUPS",
    "AnyModel",
    "AnySource",
    "ClipConfig",
    "ClipImageConfig",
    "ClipStatesConfig",
    "ClipTextConfig",
    "Config",
    "DataConfig",
    "DiffusionConfig",
    "Embeddings",
    "Folder",
    "LowResConfig",
    "MaskConfig",
    "Mixture",
    "MixturePart",
    "ModelConfig",
    "OptimConfig",
    "PriorConfig",
    "Remat",
    "SampleConfig",
    "Scenes",
    "Shards",
    "TextConfig",
    "Tfds",
    "TrainConfig",
    "UNetConfig",
    "Unknown",
]
