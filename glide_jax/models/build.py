"""The network of a model's configuration."""

from glide_jax.config import ClipConfig, ModelConfig
from glide_jax.models.clip import clip_network
from glide_jax.models.glide import glide_network
from glide_jax.models.network import Network


def build_network(model: ModelConfig | ClipConfig) -> Network:
    """The network of a configuration of either kind."""
    return clip_network(model) if isinstance(model, ClipConfig) else glide_network(model)
