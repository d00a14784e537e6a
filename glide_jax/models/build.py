"""The network of a model configuration of any kind."""

from glide_jax.config import AnyModel, ClipConfig, PriorConfig
from glide_jax.models.ar_prior import ar_prior
from glide_jax.models.clip import clip_network
from glide_jax.models.glide import glide_network
from glide_jax.models.network import Network
from glide_jax.models.openai_clip import openai_clip
from glide_jax.models.prior import prior_network


def build_network(model: AnyModel) -> Network:
    """The network of a denoiser, a CLIP or a prior."""
    if isinstance(model, ClipConfig):
        return openai_clip(model) if model.architecture == "openai" else clip_network(model)
    if isinstance(model, PriorConfig):
        return prior_network(model) if model.architecture == "diffusion" else ar_prior(model)
    return glide_network(model)
