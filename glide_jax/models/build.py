"""The network of a model configuration of either kind."""

from glide_jax.config import ClipConfig, ModelConfig
from glide_jax.models.clip import clip_network
from glide_jax.models.glide import glide_network
from glide_jax.models.network import Network


def build_network(model: ModelConfig | ClipConfig) -> Network:
    """The network of a denoiser or a CLIP."""
    return clip_network(model) if isinstance(model, ClipConfig) else glide_network(model)
