"""The tokenizer of a model's configuration."""

from glide_jax.config import ClipConfig, ModelConfig
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.tokenizers.clip_bpe import ClipTokenizer


def tokenizer_class(model: ModelConfig | ClipConfig) -> type[Tokenizer]:
    """The kind of tokenizer that a model reads captions with."""
    return ClipTokenizer if isinstance(model, ClipConfig) else Tokenizer
