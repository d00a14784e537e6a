"""Sizes and initial parameters of a fine-tuned model: those of another run, and its EMA."""

from dataclasses import replace

import numpy as np

from glide_jax.config import ClipConfig, Config, ModelConfig, PriorConfig
from glide_jax.errors import UserError
from glide_jax.models.build import build_network
from glide_jax.runs.folder import Run
from glide_jax.runs.paths import last_step, run_dir_of
from glide_jax.runs.state import require_same_shapes

INPUT_KERNEL = "unet.conv_in.kernel"
NEW_PARAMETERS = ("low_res_emb", "image_null", "image_emb.", "image_tokens.")
"""Prefixes of parameters that the other run may lack: the embeddings of low_res noise and of
images, whose outputs are zero at initialization, and the tokens of image embeddings."""

KINDS = {"denoiser": "denoiser", "clip": "CLIP", "prior": "prior"}
"""Models in words."""

HEADS = ("model.text.heads", "model.unet.head_width", "model.image.heads", "model.heads")
"""Sizes on which no shape depends."""


def with_sizes_of(before: Config, config: Config) -> Config:
    """A configuration with the model sizes of another run: those that parameters depend on.

    Of a U-Net, the resolution is none, and levels with attention stay the same levels. Models of
    different kinds have no sizes in common.

    Args:
        before: of the other run.
        config: of the new run; its other settings stay.

    Raises:
        UserError: these sizes do not fit the other settings.
    """
    old, new = before.model, config.model
    if isinstance(old, ModelConfig) and isinstance(new, ModelConfig):
        px = new.unet.resolution_px
        unet = replace(
            old.unet,
            resolution_px=px,
            attention_px=tuple(px * a // old.unet.resolution_px for a in old.unet.attention_px),
            dropout=new.unet.dropout,
        )
        model = replace(new, text=old.text, unet=unet, learned_variance=old.learned_variance)
        if old.low_res_px:
            model = replace(model, low_res_resize=old.low_res_resize)
        if old.image_embedding_width:
            width, tokens = old.image_embedding_width, old.image_tokens
            model = replace(model, image_embedding_width=width, image_tokens=tokens)
        return replace(config, model=model)
    if isinstance(old, PriorConfig) and isinstance(new, PriorConfig):
        # All its settings are sizes, except these.
        px, dtype, remat = new.resolution_px, new.dtype, new.remat
        return replace(config, model=replace(old, resolution_px=px, dtype=dtype, remat=remat))
    if isinstance(old, ClipConfig) and isinstance(new, ClipConfig):
        sizes = replace(new, text=old.text, image=old.image, embedding_width=old.embedding_width)
        return replace(config, model=sizes)
    return config


def with_starting_sizes(name: str, config: Config) -> Config:
    """The configuration with the model sizes of train.init_from, or of the run that resumes.

    Args:
        name: of the configuration, see `run_dir_of`.
        config: of the run.

    Raises:
        UserError: there is no run to start from, or its sizes do not fit the other settings.
    """
    if not config.train.init_from:
        return config
    run_dir = run_dir_of(name, config)
    resumes = last_step(run_dir) is not None
    return with_sizes_of(Run.open(run_dir if resumes else config.train.init_from).config, config)


def starting_params(run: Run, config: Config) -> dict[str, np.ndarray]:
    """Initial parameters of a run that is fine-tuned from another.

    New input channels, such as an inpainting model's known pixels and mask, are initialized to
    zero, so the model initially equals the other one (sec. 3.3, arXiv 2112.10741). So does an
    unCLIP decoder its base model, except for the attention that its model.image_tokens take.
    Resolutions may differ: no parameter of a U-Net depends on them. Of a model with a network for
    the last step, it is the other network.

    Args:
        run: the other run.
        config: of the new run.

    Returns:
        All parameters of config.model, on the host.

    Raises:
        UserError: the two models are incompatible.
    """
    before = run.config
    where = f"train.init_from {config.train.init_from or run.path}"
    if before.model.kind != config.model.kind:
        one, other = sorted(KINDS[c.model.kind] for c in (before, config))
        raise UserError(f"{where}: one of the two models is a {one}, the other a {other}")
    is_clip = isinstance(config.model, ClipConfig)
    if not (is_clip and config.clip.steps == 1):  # a CLIP for clean images uses no schedule
        relevant = ("prediction", "low_res_std", "steps", "schedule")
        for name in relevant[-2:] if is_clip else relevant:
            theirs, ours = getattr(before.diffusion, name), getattr(config.diffusion, name)
            if theirs != ours:
                raise UserError(
                    f"{where} was trained with diffusion.{name} {theirs}, this run has {ours}: its "
                    "parameters are only valid with the same setting"
                )
    clips = {c.train.clip_fingerprint for c in (before, config)} - {""}
    if isinstance(config.model, PriorConfig) and len(clips) > 1:
        raise UserError(
            f"{where} is a prior of another CLIP, whose embeddings have other statistics: "
            "give that CLIP as --train.clip-run, or train from the start"
        )
    params = {name: np.asarray(value) for name, value in run.weights().items()}
    if isinstance(before.model, ModelConfig) and before.model.last_step_network:
        params = {
            name.removeprefix("first."): x
            for name, x in params.items()
            if name.startswith("first.")
        }
    if isinstance(before.model, ModelConfig) and isinstance(config.model, ModelConfig):
        params[INPUT_KERNEL] = _with_channels(
            params[INPUT_KERNEL], before.model, config.model, where
        )
    network = build_network(config.model)
    new = {name for name in network.shapes if name.startswith(NEW_PARAMETERS)} - params.keys()
    if new:
        initial = network.init(config.train.seed)
        params |= {name: initial[name] for name in new}
    require_same_shapes(network.shapes, params, where)
    _require_same_heads(before, config, where)
    return params


def _require_same_heads(before: Config, config: Config, where: str) -> None:
    """Raises UserError if attention heads differ, which the parameters' shapes do not show."""
    theirs, ours = before.flat(), config.flat()
    for name in HEADS:
        if theirs.get(name) != ours.get(name):
            raise UserError(
                f"{where} has {name} {theirs.get(name)}, this run has {ours.get(name)}: its "
                "parameters are only valid with the same setting"
            )


def _inputs(model: ModelConfig) -> dict[str, int]:
    """Channels of the input's parts, in order: see `GlideModel.condition`."""
    known = {"known pixels and mask": 4} if model.inpaint else {}
    return {"x_t": 3} | known | ({"low_res": 3} if model.low_res_px else {})


def _with_channels(
    kernel: np.ndarray, before: ModelConfig, after: ModelConfig, where: str
) -> np.ndarray:
    """A kernel (3, 3, c_in, c_out) for the input channels of `after`, where new ones are zero."""
    old, new = _inputs(before), _inputs(after)
    lost = old.keys() - new.keys()
    if lost:
        raise UserError(f"{where}: that model has the input {lost.pop()}, this one does not")
    bounds = np.cumsum([0, *old.values()])
    parts = dict(zip(old, np.split(kernel, bounds[1:-1], axis=2), strict=True))
    h, w, _, c_out = kernel.shape
    return np.concatenate(
        [
            parts.get(name, np.zeros((h, w, channels, c_out), np.float32))
            for name, channels in new.items()
        ],
        axis=2,
    )
