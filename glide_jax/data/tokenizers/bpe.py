"""Captions to tokens by GLIDE's rule, with a vocabulary from a folder, the hub, or the data set.

The caption is lower-cased, split by byte-level BPE, truncated to the context, and padded with the
end token's id; a mask says what is caption. No begin or end token is added, so the empty caption
is all padding: the unconditional input.
"""

import json
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32
from tokenizers import decoders, models, pre_tokenizers, trainers

from glide_jax.config import DataConfig
from glide_jax.data.records import Source
from glide_jax.errors import UserError
from glide_jax.storage import AnyPath, storage_errors, write_atomically

END_TOKEN = "<|endoftext|>"
"""GPT-2's, and of every vocabulary that does not name another one."""

TRAINING_CAPTIONS = 20_000
"""A vocabulary is trained on so many captions: enough for its frequent words, in a second."""

GPT2_FILES = ("vocab.json", "merges.txt")
"""Of a vocabulary without a tokenizer.json."""

SMALLEST_VOCABULARY = 257
"""The 256 bytes, so that any text can be written, and the end token."""


class Tokenizer:
    """Byte-level BPE with GLIDE's padding. Safe for threads.

    Args:
        backend: the vocabulary and its merges.
        end_token: its entry whose id is the padding.

    Raises:
        UserError: the vocabulary has no such entry.
    """

    def __init__(self, backend: tokenizers.Tokenizer, end_token: str = END_TOKEN) -> None:
        end_id = backend.token_to_id(end_token)
        if end_id is None:
            raise UserError(f"the tokenizer has no end token {end_token!r}, the padding of GLIDE")
        backend.no_padding()
        backend.no_truncation()
        # A caption that spells out "<|endoftext|>" is text like any other.
        backend.encode_special_tokens = True
        self._backend = backend
        self._lock = threading.Lock()
        self.end_token: str = end_token
        self.end_id: int = end_id
        """Id of the padding."""
        self.vocab_size: int = 1 + max(backend.get_vocab(with_added_tokens=True).values())
        """One more than the highest id: the rows that the model's embedding needs."""
        self.truncated: int = 0
        """Captions, so far, that did not fit the context."""

    def encode(
        self, captions: Sequence[str], length: int
    ) -> tuple[Int32[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """Tokens of each caption, truncated and padded to `length`.

        Returns:
            tokens, in [0, vocab_size), and the mask that is True where they are caption.
        """
        tokens = np.full((len(captions), length), self.end_id, np.int32)
        mask = np.zeros((len(captions), length), np.bool_)
        truncated = 0
        for row, caption in enumerate(captions):
            ids = self._backend.encode(caption.lower(), add_special_tokens=False).ids
            truncated += len(ids) > length
            kept = min(len(ids), length)
            tokens[row, :kept] = ids[:kept]
            mask[row, :kept] = True
        if truncated:
            with self._lock:
                self.truncated += truncated
        return tokens, mask

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of unpadded tokens."""
        return self._backend.decode(list(tokens), skip_special_tokens=False)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learns a byte-level BPE vocabulary; the same captions give the same one.

        Args:
            captions: in any case; TRAINING_CAPTIONS of them are plenty.
            vocab_size: entries, at most; few captions give fewer.

        Raises:
            UserError: vocab_size is below SMALLEST_VOCABULARY.
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise UserError(
                f"model.text.vocab_size = {vocab_size} is too small to train a tokenizer: "
                f"at least {SMALLEST_VOCABULARY}, every byte and the end token"
            )
        backend = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[END_TOKEN],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator((caption.lower() for caption in captions), trainer)
        return cls(backend)

    @classmethod
    def load(cls, folder: AnyPath) -> "Tokenizer":
        """Reads `tokenizer.json`, as `save` and the hub write it, or `vocab.json` + `merges.txt`.

        Raises:
            UserError: the folder has neither, or they cannot be read.
        """
        whole, vocab, merges = (folder / name for name in ("tokenizer.json", *GPT2_FILES))
        # The library reports every failure, of reading or of parsing, as a plain Exception.
        try:
            if whole.is_file():
                backend = tokenizers.Tokenizer.from_str(whole.read_text(encoding="utf-8"))
                return cls(backend, _end_token(folder))
            if vocab.is_file() and merges.is_file():
                bpe = models.BPE.from_file(str(vocab), str(merges))
                return cls(_byte_level(bpe), _end_token(folder))
        except UserError as error:
            raise UserError(f"{folder}: {error}") from None
        except Exception as error:
            raise UserError(f"cannot read the tokenizer in {folder}: {error}") from error
        raise UserError(
            f"no tokenizer in {folder}: neither tokenizer.json nor {' with '.join(GPT2_FILES)}"
        )

    @classmethod
    def from_hub(cls, name: str) -> "Tokenizer":
        """Downloads a tokenizer by its name on the Hugging Face hub, such as gpt2.

        Raises:
            UserError: there is none of this name, no network, or it is of another kind.
        """
        return cls(*hub_backend(name))

    def save(self, folder: AnyPath) -> None:
        """Writes what `load`, and AutoTokenizer.from_pretrained, read.

        Raises:
            UserError: the folder cannot be written.
        """
        write_backend(folder, self._backend, eos_token=self.end_token, pad_token=self.end_token)


def make_tokenizer(
    config: DataConfig, vocab_size: int, source: Source, kind: type[Tokenizer] = Tokenizer
) -> Tokenizer:
    """The tokenizer that data.tokenizer asks for: "train", a local folder, or a hub name.

    Args:
        config: names it.
        vocab_size: rows of the model's token embedding.
        source: whose captions it is trained on, if it is.
        kind: whose rule it follows.

    Raises:
        UserError: it cannot be had, or the model's embedding is too small for it.
    """
    if config.tokenizer == "train":
        # Here, since it brings grain, which is long to import, and drawing does without.
        from glide_jax.data.mixture import captions_to_learn_from

        return kind.train(captions_to_learn_from(source, TRAINING_CAPTIONS), vocab_size)
    return find_tokenizer(config.tokenizer, vocab_size, kind)


def find_tokenizer(name: str, vocab_size: int, kind: type[Tokenizer] = Tokenizer) -> Tokenizer:
    """The tokenizer of a local folder, or of the hub's. Args and Raises as `make_tokenizer`."""
    folder = Path(name).expanduser()
    if folder.exists():
        tokenizer = kind.load(folder)
    elif name.startswith((".", "/", "~")):
        raise UserError(f"data.tokenizer: there is no folder {name}")
    else:
        tokenizer = kind.from_hub(name)
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"the tokenizer {name} has {tokenizer.vocab_size} entries, more than the model's "
            f"{vocab_size}: set model.text.vocab_size={tokenizer.vocab_size}"
        )
    return tokenizer


def hub_backend(name: str) -> tuple[tokenizers.Tokenizer, str]:
    """A tokenizer of the Hugging Face hub, and its end token.

    Raises:
        UserError: there is none of this name, no network, or it is of another kind.
    """
    # Takes a second or two, so only those who ask for the hub pay for it.
    from transformers import AutoTokenizer

    # Network, hub, and the repository's own files: each fails with exceptions of its own.
    try:
        found: Any = AutoTokenizer.from_pretrained(name)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(
            f"data.tokenizer {name!r} is no folder, and the hub does not give it: {reason}"
        ) from error
    if getattr(found, "backend_tokenizer", None) is None or found.eos_token is None:
        raise UserError(
            f"data.tokenizer {name!r} is of another kind: it has no tokenizer.json or end token"
        )
    return found.backend_tokenizer, found.eos_token


def write_backend(folder: AnyPath, backend: tokenizers.Tokenizer, **special_tokens: str) -> None:
    """Writes tokenizer.json and the settings that the hub's libraries look for beside it.

    Raises:
        UserError: the folder cannot be written.
    """
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | special_tokens
    with storage_errors("write the tokenizer to", folder):
        # Each whole or not at all, so that an interrupted run leaves no half of a tokenizer.
        write_atomically(folder / "tokenizer_config.json", json.dumps(settings, indent=2).encode())
        write_atomically(folder / "tokenizer.json", backend.to_str(pretty=True).encode())


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    """GPT-2's way to text: split into words with their leading space, then bytes, then merges."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _end_token(folder: AnyPath) -> str:
    """What the hub's settings file names as the end token: a text, or an object with its text."""
    try:
        settings = (folder / "tokenizer_config.json").read_text(encoding="utf-8")
        named = json.loads(settings)["eos_token"]
        return named["content"] if isinstance(named, dict) else str(named)
    except (FileNotFoundError, KeyError):
        return END_TOKEN
