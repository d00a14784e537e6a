"""GLIDE's tokenizer: byte-level BPE, with a vocabulary from a folder, the hub, or the data set.

Captions are lowercased, encoded, truncated to the context length and padded with the end token's
id. A mask marks the caption's tokens. No start or end token is added, so the empty caption is all
padding: the unconditional input.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32
from tokenizers import decoders, models, pre_tokenizers, trainers

from glide_jax.data.locks import Lock
from glide_jax.data.tokenizers.files import (
    MAX_BYTES,
    read_json,
    read_merges,
    read_tokenizer,
    read_vocab,
    tokenizer_errors,
)
from glide_jax.errors import UserError, first_line, shown
from glide_jax.storage import AnyPath, storage_errors, write_atomically

END_TOKEN = "<|endoftext|>"
"""GPT-2's end token, the default for vocabularies that do not name one."""

TRAINING_CAPTIONS = 20_000
"""Number of captions to train a vocabulary on: enough for frequent words, in about a second."""

GPT2_FILES = ("vocab.json", "merges.txt")
"""Files of a vocabulary without a tokenizer.json."""

MIN_VOCAB_SIZE = 257
"""The 256 bytes, which can encode any text, and the end token."""


class Tokenizer:
    """Byte-level BPE with GLIDE's padding. Thread-safe.

    Args:
        backend: the vocabulary and its merges.
        end_token: the token whose id is the padding.

    Raises:
        UserError: the vocabulary has no such token.
    """

    reserved = 0
    """Tokens of a caption's context besides its own: start and end."""

    def __init__(self, backend: tokenizers.Tokenizer, end_token: str = END_TOKEN) -> None:
        end_id = backend.token_to_id(end_token)
        if end_id is None:
            raise UserError(
                f"the tokenizer has no end token {shown(end_token)}, needed for padding"
            )
        backend.no_padding()
        backend.no_truncation()
        # "<|endoftext|>" in a caption is ordinary text.
        backend.encode_special_tokens = True
        self._backend = backend
        self._lock = Lock()
        self.end_token: str = end_token
        self.end_id: int = end_id
        """The padding id."""
        self.vocab_size: int = 1 + max(backend.get_vocab(with_added_tokens=True).values())
        """One more than the highest id: the minimum size of the model's embedding."""
        self.truncated: int = 0
        """Number of captions truncated so far."""

    def count(self, caption: str) -> int:
        """Tokens of a caption, without start and end tokens and before truncation."""
        return len(self._ids(caption))

    def _ids(self, caption: str) -> list[int]:
        try:
            return self._backend.encode(caption.lower(), add_special_tokens=False).ids
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # as in `tokenizer_errors`: some captions only
            raise UserError(
                f"the tokenizer cannot encode {shown(caption)}: {first_line(error)}"
            ) from error

    def encode(
        self, captions: Sequence[str], length: int
    ) -> tuple[Int32[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """Encodes captions, truncated and padded to `length`.

        Returns:
            Token ids in [0, vocab_size), and a mask that is False for padding.

        Raises:
            UserError: a caption is not UTF-8.
        """
        require_utf8(captions)
        tokens = np.full((len(captions), length), self.end_id, np.int32)
        mask = np.zeros((len(captions), length), np.bool_)
        truncated = 0
        for row, caption in enumerate(captions):
            ids = self._ids(caption)
            truncated += len(ids) > length
            kept = min(len(ids), length)
            tokens[row, :kept] = ids[:kept]
            mask[row, :kept] = True
        if truncated:
            with self._lock:
                self.truncated += truncated
        return tokens, mask

    def decode(self, tokens: Sequence[int]) -> str:
        """Decodes tokens without padding."""
        return self._backend.decode(list(tokens), skip_special_tokens=False)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Trains a byte-level BPE vocabulary. Deterministic.

        Args:
            captions: training captions; TRAINING_CAPTIONS of them are enough.
            vocab_size: maximum number of entries; few captions give fewer.

        Raises:
            UserError: vocab_size is below MIN_VOCAB_SIZE.
        """
        if vocab_size < MIN_VOCAB_SIZE:
            raise UserError(
                f"model.text.vocab_size = {vocab_size} is too small to train a tokenizer: use at "
                f"least {MIN_VOCAB_SIZE}, for every byte and the end token"
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
        """Reads `tokenizer.json`, as written by `save` and the hub, or `vocab.json` + `merges.txt`.

        Raises:
            UserError: the folder has neither, or the files cannot be read.
        """
        single, vocab, merges = (folder / name for name in ("tokenizer.json", *GPT2_FILES))
        with tokenizer_errors(folder):
            if single.is_file():
                backend = tokenizers.Tokenizer.from_str(json.dumps(read_tokenizer(single)))
                return cls._tried(backend, _end_token(folder))
            if vocab.is_file() and merges.is_file():
                bpe = models.BPE(vocab=read_vocab(vocab), merges=read_merges(merges))
                return cls._tried(_byte_level(bpe), _end_token(folder))
        raise UserError(
            f"no tokenizer in {folder}: add tokenizer.json or {' and '.join(GPT2_FILES)}"
        )

    @classmethod
    def _tried(cls, backend: tokenizers.Tokenizer, end_token: str) -> "Tokenizer":
        """A tokenizer that encodes a caption: some files are refused only then."""
        tokenizer = cls(backend, end_token)
        tokenizer.decode(tokenizer._ids("a red star"))
        return tokenizer

    @classmethod
    def from_hub(cls, name: str) -> "Tokenizer":
        """Downloads a tokenizer from the Hugging Face hub, for example gpt2.

        Raises:
            UserError: it does not exist, cannot be downloaded, or is not supported.
        """
        return cls(*hub_backend(name))

    def save(self, folder: AnyPath) -> None:
        """Writes files for `load` and AutoTokenizer.from_pretrained.

        Raises:
            UserError: the folder cannot be written.
        """
        write_backend(folder, self._backend, eos_token=self.end_token, pad_token=self.end_token)


def require_utf8(captions: Iterable[str]) -> None:
    """Raises UserError for a caption with surrogates, as Python reads bytes that are not UTF-8."""
    for caption in captions:
        try:
            caption.encode()
        except UnicodeEncodeError:
            raise UserError(f"the caption {caption!a} is not UTF-8: retype it") from None


def hub_backend(name: str) -> tuple[tokenizers.Tokenizer, str]:
    """Downloads a tokenizer and its end token from the Hugging Face hub.

    Raises:
        UserError: it does not exist, cannot be downloaded, or is not supported.
    """
    # A slow import, needed only for the hub.
    from transformers import AutoTokenizer

    # The network, the hub and the parser raise many exception types.
    try:
        # False, not the default: that asks at the terminal whether to run a repository's code.
        found: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        if "custom code" in str(error):
            raise UserError(
                f"data.tokenizer {name!r} is refused: it needs code from its repository, which is "
                "never run: name another tokenizer, or a folder with its tokenizer.json"
            ) from None
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(
            f"data.tokenizer {name!r} is not a folder and cannot be loaded from the hub: {reason}"
        ) from error
    if getattr(found, "backend_tokenizer", None) is None or found.eos_token is None:
        raise UserError(
            f"data.tokenizer {name!r} is not supported: it has no tokenizer.json or no end token"
        )
    return found.backend_tokenizer, found.eos_token


def write_backend(folder: AnyPath, backend: tokenizers.Tokenizer, **special_tokens: str) -> None:
    """Writes tokenizer.json and the hub's tokenizer_config.json.

    Raises:
        UserError: the folder cannot be written.
    """
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | special_tokens
    content = backend.to_str(pretty=True).encode()
    if len(content) > MAX_BYTES:
        raise UserError(
            f"the tokenizer takes {len(content) / 1e6:,.0f} MB, more than {MAX_BYTES / 1e6:,.0f} "
            "MB: choose a smaller vocabulary"
        )
    with storage_errors("write the tokenizer to", folder):
        # tokenizer.json last: `load` ignores the folder without it.
        write_atomically(folder / "tokenizer_config.json", json.dumps(settings, indent=2).encode())
        write_atomically(folder / "tokenizer.json", content)


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    """GPT-2's tokenization: words with their leading space, then bytes, then merges."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _end_token(folder: AnyPath) -> str:
    """The end token in tokenizer_config.json, stored as a string or an object with "content"."""
    settings = folder / "tokenizer_config.json"
    if not settings.is_file():  # reading a pipe would block
        return END_TOKEN
    named = read_json(settings).get("eos_token") or END_TOKEN
    token = named.get("content") if isinstance(named, dict) else named
    if not isinstance(token, str):
        raise UserError(f"eos_token in {settings.name} is {shown(token)}: give a token")
    return token
