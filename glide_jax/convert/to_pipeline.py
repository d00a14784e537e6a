"""Run folders of unCLIP to the folder of a diffusers pipeline."""

from pathlib import Path
from typing import Any

import numpy as np

from glide_jax.config import ClipConfig, Config, ModelConfig, PriorConfig
from glide_jax.convert.parts import TOKENIZER
from glide_jax.data.tokenizers.clip_bpe import END_TOKEN, START_TOKEN
from glide_jax.data.tokenizers.files import model_parts, read_tokenizer
from glide_jax.errors import UserError
from glide_jax.models.openai_clip import PIXEL_MEAN, PIXEL_STD
from glide_jax.pretrained.diffusers_configs import (
    clip_configs,
    decoder_configs,
    prior_config,
    sr_config,
)
from glide_jax.pretrained.diffusers_folder import MODEL_INDEX, write_component, write_json
from glide_jax.pretrained.names import Rules, to_original, tower
from glide_jax.pretrained.projections import split
from glide_jax.pretrained.unclip_names import (
    DIFFUSERS_DECODER,
    DIFFUSERS_PRIOR,
    DIFFUSERS_SR,
    TRANSFORMERS_CLIP,
)
from glide_jax.pretrained.weight_files import FORMATS, Tensors
from glide_jax.runs.folder import Run
from glide_jax.storage import write_atomically

CLASSES = {
    "prior": ["diffusers", "PriorTransformer"],
    "decoder": ["diffusers", "UNet2DConditionModel"],
    "text_proj": ["unclip", "UnCLIPTextProjModel"],
    "super_res_first": ["diffusers", "UNet2DModel"],
    "super_res_last": ["diffusers", "UNet2DModel"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "prior_scheduler": ["diffusers", "UnCLIPScheduler"],
    "decoder_scheduler": ["diffusers", "UnCLIPScheduler"],
    "super_res_scheduler": ["diffusers", "UnCLIPScheduler"],
}
"""Library and class of each component, as model_index.json names them."""
PAD_TOKEN = "!"
"""The token with id 0, with which CLIP pads."""

Component = tuple[dict[str, Any], Tensors]
"""config.json and tensors."""


def runs_to_pipeline(folder: Path, to: Path) -> None:
    """Write the EMA parameters of unCLIP's models as a pipeline for diffusers.

    Args:
        folder: a run folder, or a folder of run folders; any of unCLIP's models may be missing.
        to: folder for the components and model_index.json.

    Raises:
        UserError: `folder` has no run, or a model that diffusers cannot have; or `to` exists or
            cannot be written.
    """
    if to.exists():
        raise UserError(f"{to} already exists: remove it, or give another --to")
    runs = Run.open_all(folder)
    for run in runs:
        _require_unclip(run.config, to)
    for run in runs:
        params = {name: np.asarray(value) for name, value in run.weights().items()}
        for name, (config, tensors) in components(run.config, params).items():
            write_component(to / name, config, tensors)
            print(f"{to / name}: {sum(x.size for x in tensors.values()):,} parameters")
        _write_settings(run, to)
    found = {name: CLASSES[name] for name in sorted(path.name for path in to.iterdir())}
    pipeline = "UnCLIPPipeline" if "prior" in found else "UnCLIPImageVariationPipeline"
    write_json(to / MODEL_INDEX, {"_class_name": pipeline, **found})


def components(config: Config, params: Tensors) -> dict[str, Component]:
    """The components of one model by name. Raises UserError if diffusers cannot have it."""
    model = config.model
    if isinstance(model, PriorConfig):
        settings = prior_config(model)
        tensors = _originals(params, DIFFUSERS_PRIOR, settings["attention_head_dim"])
        tensors |= {name: tensors[name][None] for name in ("prior.clip_mean", "prior.clip_std")}
        return {"prior": (settings, tower(tensors, "prior"))}
    if isinstance(model, ClipConfig):
        names = ("text_encoder", "image_encoder")
        tensors = _originals(params, TRANSFORMERS_CLIP, None)
        starts = (("text_model.", "text_projection."), ("vision_model.", "visual_projection."))
        parts = [{k: x for k, x in tensors.items() if k.startswith(start)} for start in starts]
        return dict(zip(names, zip(clip_configs(model), parts, strict=True), strict=True))
    if model.image_embedding_width:
        tensors = _originals(params, DIFFUSERS_DECODER, model.unet.head_width)
        unet, text_proj = decoder_configs(model)
        return {
            "decoder": (unet, tower(tensors, "decoder")),
            "text_proj": (text_proj, tower(tensors, "text_proj")),
        }
    tensors = _originals(params, DIFFUSERS_SR, None)
    names = ("super_res_first", "super_res_last")
    return {name: (sr_config(model), tower(tensors, name)) for name in names}


def _originals(params: Tensors, rules: Rules, head_width: int | None) -> Tensors:
    return split(to_original(params, rules), head_width)


def _require_unclip(config: Config, to: Path) -> None:
    """Raises UserError if a model has no layout in diffusers."""
    model, diffusion = config.model, config.diffusion
    if isinstance(model, PriorConfig):
        prior_config(model)
    elif isinstance(model, ModelConfig) and model.image_embedding_width:
        decoder_configs(model)
    elif isinstance(model, ModelConfig) and model.last_step_network:
        sr_config(model)
    elif not (isinstance(model, ClipConfig) and model.architecture == "openai"):
        raise UserError(
            f"--to {to}: the name must end in {', '.join(FORMATS)}; only unCLIP's models with "
            "Karlo's layout have a folder for diffusers"
        )
    for name, needed in (("schedule", "squaredcos_cap_v2"), ("prediction", "eps")):
        value = getattr(diffusion, name)
        if value != needed and not isinstance(model, ClipConfig):
            raise UserError(
                f"diffusers' unCLIP needs diffusion.{name} {needed}; this model has {value}: "
                "convert to a file instead"
            )


def _write_settings(run: Run, to: Path) -> None:
    """The components without weights: schedulers, tokenizer and preprocessing of images."""
    model, T = run.config.model, run.config.diffusion.steps
    scheduler = {"_class_name": "UnCLIPScheduler", "num_train_timesteps": T}
    fixed = {**scheduler, "variance_type": "fixed_small_log"}
    if isinstance(model, PriorConfig):
        settings = {**fixed, "prediction_type": "sample", "clip_sample_range": 5.0}
        write_json(to / "prior_scheduler" / "scheduler_config.json", settings)
    elif isinstance(model, ClipConfig):
        _write_clip_settings(run, model, to)
    elif model.image_embedding_width:
        settings = {**scheduler, "variance_type": "learned_range", "prediction_type": "epsilon"}
        write_json(to / "decoder_scheduler" / "scheduler_config.json", settings)
    else:
        settings = {**fixed, "prediction_type": "epsilon"}
        write_json(to / "super_res_scheduler" / "scheduler_config.json", settings)


def _write_clip_settings(run: Run, model: ClipConfig, to: Path) -> None:
    px = model.image.resolution_px
    preprocessing = {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": px, "width": px},
        "size": {"shortest_edge": px},
        "resample": 3,  # bicubic
        "image_mean": list(PIXEL_MEAN),
        "image_std": list(PIXEL_STD),
    }
    write_json(to / "feature_extractor" / "preprocessor_config.json", preprocessing)
    vocab, merges = model_parts(read_tokenizer(run.path / TOKENIZER / "tokenizer.json"))
    folder = to / TOKENIZER
    write_json(folder / "vocab.json", vocab)
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    write_atomically(folder / "merges.txt", "\n".join(lines).encode() + b"\n")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": model.text.length,
        "bos_token": START_TOKEN,
        "eos_token": END_TOKEN,
        "unk_token": END_TOKEN,
        "pad_token": PAD_TOKEN,
        "do_lower_case": True,
    }
    write_json(folder / "tokenizer_config.json", settings)
