"""The tokenizer of a run: its class, trained or loaded as data.tokenizer says."""

from pathlib import Path

from glide_jax.config import AnyModel, DataConfig, ModelConfig
from glide_jax.data.records import Source
from glide_jax.data.tokenizers.bpe import TRAINING_CAPTIONS, Tokenizer
from glide_jax.data.tokenizers.clip_bpe import ClipTokenizer
from glide_jax.errors import UserError
from glide_jax.storage import expand_home


def tokenizer_class(model: AnyModel) -> type[Tokenizer]:
    """The tokenizer class for a model: CLIP's, also for models that read its states, or GLIDE's."""
    own = isinstance(model, ModelConfig) and model.text.encoder != "clip"
    return Tokenizer if own else ClipTokenizer


def make_tokenizer(
    config: DataConfig, vocab_size: int, source: Source, kind: type[Tokenizer] = Tokenizer
) -> Tokenizer:
    """Trains or loads the tokenizer of data.tokenizer: "train", a local folder, or a hub name.

    Args:
        config: the data settings.
        vocab_size: size of the model's token embedding.
        source: provides the training captions.
        kind: the tokenizer class.

    Raises:
        UserError: it cannot be loaded, or has more entries than vocab_size.
    """
    if config.tokenizer == "train":
        # Imports grain, which is slow and not needed for sampling.
        from glide_jax.data.mixture import training_captions

        return kind.train(training_captions(source, TRAINING_CAPTIONS), vocab_size)
    return load_tokenizer(config.tokenizer, vocab_size, kind)


def load_tokenizer(name: str, vocab_size: int, kind: type[Tokenizer] = Tokenizer) -> Tokenizer:
    """Loads a tokenizer from a local folder or the hub. Args and Raises as in `make_tokenizer`."""
    folder = Path(expand_home(name))
    if folder.exists():
        tokenizer = kind.load(folder)
    elif name.startswith((".", "/", "~")):
        raise UserError(f"data.tokenizer: no such folder: {name}")
    else:
        tokenizer = kind.from_hub(name)
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"the tokenizer {name} has {tokenizer.vocab_size} entries, more than the model's "
            f"{vocab_size}: set model.text.vocab_size={tokenizer.vocab_size}"
        )
    return tokenizer
