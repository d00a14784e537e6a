"""Where a fine-tuning starts: another run's averaged parameters, fitted to this run's model."""

import numpy as np

from glide_jax.config import ClipConfig, Config, ModelConfig
from glide_jax.errors import UserError
from glide_jax.models.build import build_network
from glide_jax.runs.folder import Run
from glide_jax.runs.state import require_same_shapes

INPUT_KERNEL = "unet.conv_in.kernel"
NEW_PARAMETERS = "low_res_emb"
"""What a model may have and its start not: how noisy low_res is; it ends in zeros."""


def starting_params(run: Run, config: Config) -> dict[str, np.ndarray]:
    """The parameters that a fine-tuning starts from.

    Input channels that are new, such as an inpainting model's known pixels and mask, start as
    zeros: before the first step the model is the one it comes from (sec. 3.3, arXiv 2112.10741).
    Resolutions may differ, as a U-Net's parameters do not depend on them.

    Args:
        run: to start from.
        config: the run to start.

    Returns:
        Every parameter of config.model, on the host.

    Raises:
        UserError: the two models do not fit.
    """
    before = run.config
    where = f"train.init_from {run.path}"
    if isinstance(before.model, ClipConfig) != isinstance(config.model, ClipConfig):
        raise UserError(f"{where}: one of the two models is a CLIP, the other draws")
    is_clip = isinstance(config.model, ClipConfig)
    if not (is_clip and config.clip.steps == 1):  # a plain CLIP knows no noise
        meaning = ("prediction", "low_res_std", "steps", "schedule")
        for name in meaning[-2:] if is_clip else meaning:
            theirs, ours = getattr(before.diffusion, name), getattr(config.diffusion, name)
            if theirs != ours:
                raise UserError(
                    f"{where} was trained with diffusion.{name} {theirs}, which its parameters "
                    f"mean; this run has {ours}"
                )
    params = {name: np.asarray(value) for name, value in run.weights().items()}
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
    return params


def _inputs(model: ModelConfig) -> dict[str, int]:
    """The input's parts in their order, with their channels: see `GlideModel.condition`."""
    known = {"known pixels and mask": 4} if model.inpaint else {}
    return {"x_t": 3} | known | ({"low_res": 3} if model.low_res_px else {})


def _with_channels(
    kernel: np.ndarray, before: ModelConfig, after: ModelConfig, where: str
) -> np.ndarray:
    """A kernel (3, 3, c_in, c_out) with the other model's input channels, new ones zero."""
    old, new = _inputs(before), _inputs(after)
    lost = old.keys() - new.keys()
    if lost:
        raise UserError(f"{where}: that model sees {lost.pop()}, this one does not")
    places = np.cumsum([0, *old.values()])
    parts = dict(zip(old, np.split(kernel, places[1:-1], axis=2), strict=True))
    h, w, _, c_out = kernel.shape
    return np.concatenate(
        [
            parts.get(name, np.zeros((h, w, channels, c_out), np.float32))
            for name, channels in new.items()
        ],
        axis=2,
    )
