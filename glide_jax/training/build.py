"""Which objective a configuration trains."""

from glide_jax.config import ClipConfig, Config
from glide_jax.sampling.clip import ClipStage
from glide_jax.training.contrastive import Contrastive
from glide_jax.training.denoising import Denoising
from glide_jax.training.objective import Objective


def make_objective(config: Config, clip: ClipStage | None = None) -> Objective:
    """The objective of a run.

    Args:
        config: the run.
        clip: of train.clip_run, for train.clip_loss_weight.
    """
    if isinstance(config.model, ClipConfig):
        return Contrastive(config)
    if clip is None:
        return Denoising(config)
    return Denoising(config, clip.network, clip.params)
