"""The small models from which the golden values were recorded."""

import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from glide_jax.config import (
    ClipConfig,
    ClipImageConfig,
    ClipTextConfig,
    ModelConfig,
    TextConfig,
    UNetConfig,
)
from glide_jax.models.clip import clip_network
from glide_jax.models.glide import glide_network
from glide_jax.pretrained.names import CLIP_IMAGE, CLIP_TEXT, from_original, tower
from glide_jax.shapes import Params

GOLDEN = Path(__file__).parent.parent / "golden"
UNETS = ("base", "base_inpaint", "upsample", "upsample_inpaint")


def config_of(meta: dict, low_res_px: int = 0, inpaint: bool = False) -> ModelConfig:
    """Sizes of the model of a golden file."""
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
        low_res_px=low_res_px,
        inpaint=inpaint,
        dtype="float32",
    )


def golden_weights(file: str) -> tuple[dict, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Metadata of a golden file, weights under the original's names, and other arrays."""
    arrays = dict(np.load(GOLDEN / file))
    meta = json.loads(str(arrays.pop("meta")))
    names = [name for name in arrays if name.startswith("w/")]
    weights = {name.removeprefix("w/"): arrays.pop(name).astype(np.float32) for name in names}
    return meta, weights, arrays


def load_golden(file: str) -> tuple[ModelConfig, Params, dict[str, np.ndarray]]:
    """Configuration of a golden denoiser, weights under our names, and other arrays."""
    meta, weights, arrays = golden_weights(file)
    low_res_px = arrays["low_res"].shape[1] if "low_res" in arrays else 0
    config = config_of(meta, low_res_px, inpaint="inpaint_mask" in arrays)
    params = from_original(weights, glide_network(config).shapes)
    return config, {name: jnp.asarray(w) for name, w in params.items()}, arrays


def golden_clip_files() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Text and image tower of the golden CLIP, under the original's names."""
    _, weights, _ = golden_weights("clip.npz")
    return tower(weights, "text_encoder"), tower(weights, "image_encoder")


def golden_clip_config() -> ClipConfig:
    """Configuration of the golden CLIP."""
    meta, _, _ = golden_weights("clip.npz")
    return ClipConfig(
        text=ClipTextConfig(
            vocab_size=meta["n_vocab"],
            length=meta["max_text_len"],
            width=meta["n_head_text"] * meta["n_head_state_text"],
            layers=meta["n_xf_blocks_text"],
            heads=meta["n_head_text"],
        ),
        image=ClipImageConfig(
            resolution_px=meta["image_size"],
            patch_px=meta["patch_size"],
            width=meta["n_head_image"] * meta["n_head_state_image"],
            layers=meta["n_xf_blocks_image"],
            heads=meta["n_head_image"],
        ),
        embedding_width=meta["n_embd"],
        steps=meta["n_timesteps"],
        dtype="float32",
    )


def load_golden_clip() -> tuple[ClipConfig, Params, dict[str, np.ndarray]]:
    """Configuration of the golden CLIP, weights under our names, and other arrays."""
    meta, _, arrays = golden_weights("clip.npz")
    text, image = golden_clip_files()
    config = golden_clip_config()
    shapes = clip_network(config).shapes
    params = {"logit_scale": jnp.float32(math.log(meta["logit_scale"]))}
    for name, tensors, rules in (("text", text, CLIP_TEXT), ("image", image, CLIP_IMAGE)):
        converted = from_original(tensors, tower(shapes, name), rules)
        params |= {f"{name}.{key}": jnp.asarray(value) for key, value in converted.items()}
    return config, params, arrays
