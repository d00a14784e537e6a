"""Configuration and parameters of each published model, from its parts."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from glide_jax.config import AnyModel, Config
from glide_jax.convert.parts import Part
from glide_jax.models.build import build_network
from glide_jax.models.clip import clip_network
from glide_jax.pretrained import diffusers_configs, unclip_sizes
from glide_jax.pretrained.defaults import RELEASED
from glide_jax.pretrained.names import (
    CLIP_IMAGE,
    CLIP_TEXT,
    DENOISER,
    Rules,
    from_original,
    tower,
)
from glide_jax.pretrained.projections import fused
from glide_jax.pretrained.sizes import (
    CLIP_IMAGE_FILE,
    CLIP_TEXT_FILE,
    KARLO_DECODER_FILE,
    KARLO_PRIOR_FILE,
    KARLO_SR_FILE,
    KARLO_STATISTICS_FILE,
    KIND_BY_CHANNELS,
    OPENAI_CLIP_FILE,
    TRANSFORMERS_CLIP_FILE,
    UnstoredSettings,
    clip_sizes,
    denoiser_sizes,
    size_of,
)
from glide_jax.pretrained.unclip_names import (
    CLIP_STATISTICS,
    DIFFUSERS_DECODER,
    DIFFUSERS_PRIOR,
    DIFFUSERS_SR,
    KARLO_DECODER,
    KARLO_PRIOR,
    KARLO_SR,
    TRANSFORMERS_CLIP,
)
from glide_jax.pretrained.vision_names import OPENAI_CLIP
from glide_jax.pretrained.weight_files import Tensors

CLIP = "clip"
"""Name of the run folder of a CLIP."""
LOGIT_SCALE = math.log(100)
"""Of the released CLIPs; some of their files do not contain it."""

Parts = Mapping[str, Part]
"""By kind."""
Model = tuple[Config, Tensors]


@dataclass(frozen=True)
class Recipe:
    """How a run folder is made of parts."""

    run: str
    """Name of the run folder."""
    kinds: tuple[str, ...]
    """Kinds of the parts."""
    build: Callable[[Parts, UnstoredSettings], Model]
    """Configuration and parameters."""
    hint: str = ""
    """Where to find a missing part."""


def _configured(role: str, model: AnyModel) -> Config:
    diffusion, sample = RELEASED[role]
    return Config(model=model, diffusion=diffusion, sample=sample)


def _mapped(role: str, model: AnyModel, tensors: Tensors, rules: Rules) -> Model:
    params = from_original(tensors, build_network(model).shapes, rules)
    return _configured(role, model), params


def denoiser_of(parts: Parts, unstored: UnstoredSettings) -> Model:
    """A base model or an upsampler of GLIDE."""
    ((kind, part),) = parts.items()
    model = denoiser_sizes(part.shapes, unstored)
    return _mapped(kind, model, part.tensors, DENOISER)


def noised_clip_of(parts: Parts, unstored: UnstoredSettings) -> Model:
    """GLIDE's CLIP, from its two files."""
    text, image = parts[CLIP_TEXT_FILE], parts[CLIP_IMAGE_FILE]
    model = clip_sizes(text.shapes, image.shapes, unstored)
    shapes = clip_network(model).shapes
    params: Tensors = {"logit_scale": np.array(LOGIT_SCALE, np.float32)}
    for name, part, rules in (("text", text, CLIP_TEXT), ("image", image, CLIP_IMAGE)):
        converted = from_original(part.tensors, tower(shapes, name), rules)
        params |= {f"{name}.{parameter}": value for parameter, value in converted.items()}
    return _configured(CLIP, model), params


def karlo_prior_of(parts: Parts, unstored: UnstoredSettings) -> Model:
    """Karlo's prior, from its checkpoint and the statistics of CLIP's embeddings."""
    part, statistics = parts[KARLO_PRIOR_FILE], parts[KARLO_STATISTICS_FILE]
    tensors = part.tensors | {f"{CLIP_STATISTICS}.{k}": x for k, x in statistics.tensors.items()}
    return _mapped(
        "prior", unclip_sizes.karlo_prior_sizes(part.shapes, unstored), tensors, KARLO_PRIOR
    )


def karlo_decoder_of(parts: Parts, unstored: UnstoredSettings) -> Model:
    """Karlo's decoder."""
    (part,) = parts.values()
    model = unclip_sizes.karlo_decoder_sizes(part.shapes, unstored)
    return _mapped("decoder", model, part.tensors, KARLO_DECODER)


def karlo_sr_of(parts: Parts, unstored: UnstoredSettings) -> Model:
    """Karlo's two super-resolution networks."""
    (part,) = parts.values()
    model = unclip_sizes.karlo_sr_sizes(part.shapes, unstored)
    return _mapped("karlo-upsample", model, part.tensors, KARLO_SR)


def openai_clip_of(parts: Parts, unstored: UnstoredSettings) -> Model:
    """OpenAI's CLIP, from its archive or a state dict."""
    (part,) = parts.values()
    width = size_of(part.shapes, "text_projection", 1, 2)
    model = unclip_sizes.plain_clip_sizes(part.shapes, unclip_sizes.OPENAI_NAMES, width, unstored)
    return _mapped(CLIP, model, part.tensors, OPENAI_CLIP)


def transformers_clip_of(parts: Parts, unstored: UnstoredSettings) -> Model:
    """OpenAI's CLIP as transformers saves it: in one file, or its towers in two components."""
    tensors: Tensors = {"logit_scale": np.array(LOGIT_SCALE, np.float32)}
    for part in parts.values():
        tensors |= part.tensors
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    width = size_of(shapes, "text_projection.weight", 0, 2)
    model = unclip_sizes.plain_clip_sizes(shapes, unclip_sizes.TRANSFORMERS_NAMES, width, unstored)
    if "text_encoder/" in parts:
        text, image = parts["text_encoder/"].config, parts["image_encoder/"].config
        model = diffusers_configs.with_heads(model, text, image)
    return _mapped(CLIP, model, fused(tensors, None), TRANSFORMERS_CLIP)


def diffusers_prior_of(parts: Parts, unstored: UnstoredSettings) -> Model:
    """prior/ of a pipeline."""
    (part,) = parts.values()
    model = diffusers_configs.prior_sizes(part.config, unstored)
    tensors = fused(part.prefixed, diffusers_configs.prior_head_width(part.config))
    for name in ("prior.clip_mean", "prior.clip_std"):
        if name in tensors and tensors[name].ndim == 2:
            tensors[name] = tensors[name][0]
    return _mapped("prior", model, tensors, DIFFUSERS_PRIOR)


def diffusers_decoder_of(parts: Parts, unstored: UnstoredSettings) -> Model:
    """decoder/ and text_proj/ of a pipeline."""
    unet, text_proj = parts["decoder/"], parts["text_proj/"]
    model = diffusers_configs.decoder_sizes(unet.config, text_proj.config, unstored)
    tensors = fused(unet.prefixed, model.unet.head_width) | text_proj.prefixed
    return _mapped("decoder", model, tensors, DIFFUSERS_DECODER)


def diffusers_sr_of(parts: Parts, unstored: UnstoredSettings) -> Model:
    """super_res_first/ and super_res_last/ of a pipeline."""
    first, last = parts["super_res_first/"], parts["super_res_last/"]
    model = diffusers_configs.sr_sizes(first.config, unstored)
    return _mapped("karlo-upsample", model, first.prefixed | last.prefixed, DIFFUSERS_SR)


RECIPES = (
    *(Recipe(kind, (kind,), denoiser_of) for kind in KIND_BY_CHANNELS.values()),
    Recipe(CLIP, (CLIP_TEXT_FILE, CLIP_IMAGE_FILE), noised_clip_of),
    Recipe(
        "prior",
        (KARLO_PRIOR_FILE, KARLO_STATISTICS_FILE),
        karlo_prior_of,
        "Karlo's files are prior-ckpt-step=01000000-of-01000000.ckpt and ViT-L-14_stats.th",
    ),
    Recipe("decoder", (KARLO_DECODER_FILE,), karlo_decoder_of),
    Recipe("upsample", (KARLO_SR_FILE,), karlo_sr_of),
    Recipe(CLIP, (OPENAI_CLIP_FILE,), openai_clip_of),
    Recipe(CLIP, (TRANSFORMERS_CLIP_FILE,), transformers_clip_of),
    Recipe("prior", ("prior/",), diffusers_prior_of),
    Recipe("decoder", ("decoder/", "text_proj/"), diffusers_decoder_of),
    Recipe("upsample", ("super_res_first/", "super_res_last/"), diffusers_sr_of),
    Recipe(
        CLIP,
        ("text_encoder/", "image_encoder/"),
        transformers_clip_of,
        "kakaobrain/karlo-v1-alpha-image-variations has the image encoder; or give OpenAI's "
        "ViT-L-14.pt, which has both",
    ),
)
"""Every run folder that published parts make. Each kind of part is of one recipe."""


def recipe_of(kind: str) -> Recipe:
    """The recipe of a kind of part."""
    (recipe,) = (recipe for recipe in RECIPES if kind in recipe.kinds)
    return recipe
