"""The small models that the golden values were recorded from."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from glide_jax.config import ModelConfig, TextConfig, UNetConfig
from glide_jax.models.convert import from_original
from glide_jax.models.glide import glide_network
from glide_jax.shapes import Params

GOLDEN = Path(__file__).parent / "golden"


def config_of(meta: dict) -> ModelConfig:
    """The sizes a golden file was recorded with."""
    return ModelConfig(
        text=TextConfig(
            vocab_size=meta["vocab"],
            length=meta["text_ctx"],
            width=meta["xf_width"],
            layers=meta["xf_layers"],
            heads=meta["xf_heads"],
        ),
        unet=UNetConfig(
            resolution_px=meta["image"],
            channels=meta["model_channels"],
            channel_mult=tuple(meta["channel_mult"]),
            res_blocks=meta["num_res_blocks"],
            attention_px=tuple(meta["image"] // f for f in meta["attention_downsample_factors"]),
            head_width=meta["num_head_channels"],
        ),
        dtype="float32",
    )


def load_golden(file: str) -> tuple[ModelConfig, Params, dict[str, np.ndarray]]:
    """A golden file's model sizes, its weights under our names, and its other arrays."""
    arrays = dict(np.load(GOLDEN / file))
    config = config_of(json.loads(str(arrays.pop("meta"))))
    weights = {name[2:]: arrays.pop(name) for name in list(arrays) if name.startswith("w/")}
    shapes = {name: shape.shape for name, shape in glide_network(config).shapes.items()}
    params = {name: jnp.asarray(w) for name, w in from_original(weights, shapes).items()}
    return config, params, arrays
