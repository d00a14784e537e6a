"""CLIP's tokenizer (arXiv 2103.00020): byte-level BPE on cleaned words, in any vocabulary format.

Captions are cleaned (broken characters repaired, HTML entities decoded, white space collapsed),
lowercased, split into words and encoded. The last token of a word ends in `</w>`. Start and end
tokens enclose the caption, and zeros pad it.
"""

import gzip
import html
import json
from collections.abc import Iterable, Sequence

import ftfy
import numpy as np
import tokenizers
from jaxtyping import Bool, Int32
from tokenizers import decoders, models, pre_tokenizers, trainers

from glide_jax.data.locks import Lock
from glide_jax.data.tokenizers.bpe import (
    GPT2_FILES,
    Tokenizer,
    hub_backend,
    require_utf8,
    write_backend,
)
from glide_jax.data.tokenizers.files import (
    MAX_BYTES,
    Merges,
    Vocab,
    model_parts,
    parse_merges,
    read_merges,
    read_tokenizer,
    read_vocab,
    tokenizer_errors,
)
from glide_jax.errors import UserError
from glide_jax.storage import AnyPath, text_lines

START_TOKEN = "<|startoftext|>"
END_TOKEN = "<|endoftext|>"
END_OF_WORD = "</w>"
SPACE = "Ġ"
"""A space in byte-level vocabularies."""

CLIP_FILE = "bpe_simple_vocab_16e6.txt.gz"
"""OpenAI's vocabulary: a list of merges. CLIP uses the first CLIP_MERGES of them."""
CLIP_MERGES = 48_894

WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
)
"""A word: a special token, an English contraction, letters, one digit, or other characters."""

MIN_VOCAB_SIZE = 514
"""Every byte, inside a word and at its end, and the start and end tokens."""


class ClipTokenizer(Tokenizer):
    """Byte-level BPE with CLIP's cleaning and padding. Thread-safe.

    Args:
        vocab: token ids. Bytes are encoded as in GPT-2.
        merges: pairs of tokens to merge, in order of priority.

    Raises:
        UserError: not a CLIP vocabulary.
    """

    reserved = 2

    def __init__(self, vocab: Vocab, merges: Merges) -> None:
        for token in (START_TOKEN, END_TOKEN, "a" + END_OF_WORD):
            if token not in vocab:
                raise UserError(f"not a CLIP tokenizer: it has no {token}")
        self._backend = _backend(vocab, merges)
        self._words = self._backend.pre_tokenizer
        self._model = self._backend.model
        self._special = {token: vocab[token] for token in (START_TOKEN, END_TOKEN)}
        self._lock = Lock()
        self.start_id: int = vocab[START_TOKEN]
        self.end_id: int = vocab[END_TOKEN]
        self.vocab_size: int = 1 + max(vocab.values())
        """One more than the highest id: the minimum size of the model's embedding."""
        self.truncated: int = 0
        """Number of captions truncated so far."""

    def encode(
        self, captions: Sequence[str], length: int
    ) -> tuple[Int32[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """Encodes captions. Long ones are truncated before the end token.

        Args:
            captions: b strings. Special tokens in them are encoded as such, as in the original.
            length: context length, at least 2.

        Returns:
            Token ids in [0, vocab_size), and a mask that is False for padding.

        Raises:
            UserError: a caption is not UTF-8.
        """
        require_utf8(captions)
        tokens = np.zeros((len(captions), length), np.int32)
        mask = np.zeros((len(captions), length), np.bool_)
        truncated = 0
        for row, caption in enumerate(captions):
            ids = [self.start_id, *self._ids(caption), self.end_id]
            if len(ids) > length:
                truncated += 1
                ids = [*ids[: length - 1], self.end_id]
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = True
        if truncated:
            with self._lock:
                self.truncated += truncated
        return tokens, mask

    def _ids(self, caption: str) -> list[int]:
        ids: list[int] = []
        for word, _ in self._words.pre_tokenize_str(clean(caption)):
            if word in self._special:
                ids.append(self._special[word])
            else:
                ids.extend(piece.id for piece in self._model.tokenize(word))
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Decodes tokens without padding to cleaned text. Start and end tokens are dropped."""
        kept = [token for token in tokens if token not in (self.start_id, self.end_id)]
        return self._backend.decode(kept, skip_special_tokens=False).removesuffix(" ")

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> "ClipTokenizer":
        """Trains a vocabulary in CLIP's layout. Deterministic.

        Args:
            captions: training captions; `bpe.TRAINING_CAPTIONS` of them are enough.
            vocab_size: maximum number of entries; few captions give fewer.

        Raises:
            UserError: vocab_size is below MIN_VOCAB_SIZE.
        """
        if vocab_size < MIN_VOCAB_SIZE:
            raise UserError(
                f"model.text.vocab_size = {vocab_size} is too small to train CLIP's tokenizer: use "
                f"at least {MIN_VOCAB_SIZE}, for every byte twice and the start and end tokens"
            )
        backend = _backend({}, [])
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            end_of_word_suffix=END_OF_WORD,
            show_progress=False,
        )
        backend.train_from_iterator((clean(caption) for caption in captions), trainer)
        learned = [(a, b) for a, b in json.loads(backend.to_str())["model"]["merges"]]
        return cls.from_merges(learned[: vocab_size - MIN_VOCAB_SIZE])

    @classmethod
    def from_merges(cls, merges: Merges) -> "ClipTokenizer":
        """CLIP's layout: bytes, bytes at the end of a word, merges, start and end tokens."""
        characters = _byte_characters()
        tokens = [*characters, *(character + END_OF_WORD for character in characters)]
        tokens += [a + b for a, b in merges]
        tokens += [START_TOKEN, END_TOKEN]
        return cls({token: i for i, token in enumerate(tokens)}, merges)

    @classmethod
    def load(cls, path: AnyPath) -> "ClipTokenizer":
        """Reads a vocabulary.

        Args:
            path: CLIP's own file of merges (bpe_simple_vocab_16e6.txt.gz), or a folder with this
                file, `tokenizer.json`, or `vocab.json` + `merges.txt`.

        Raises:
            UserError: the folder has none of them, or the files cannot be read.
        """
        clip_file = path if path.is_file() else path / CLIP_FILE
        single, vocab, merges = (path / name for name in ("tokenizer.json", *GPT2_FILES))
        with tokenizer_errors(path):
            if single.is_file():
                return cls(*model_parts(read_tokenizer(single)))
            if vocab.is_file() and merges.is_file():
                return cls(read_vocab(vocab), read_merges(merges))
            if clip_file.is_file():
                lines = text_lines(_unpacked(clip_file))
                return cls.from_merges(parse_merges(lines[: 1 + CLIP_MERGES]))
        raise UserError(
            f"no tokenizer in {path}: add tokenizer.json, {' and '.join(GPT2_FILES)}, or "
            f"{CLIP_FILE}"
        )

    @classmethod
    def from_hub(cls, name: str) -> "ClipTokenizer":
        """Downloads a tokenizer from the hub, for example openai/clip-vit-base-patch32.

        Raises:
            UserError: it does not exist, cannot be downloaded, or is not a CLIP tokenizer.
        """
        try:
            return cls(*model_parts(json.loads(hub_backend(name)[0].to_str())))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{name} is not a CLIP tokenizer: {error!r}") from error

    def save(self, folder: AnyPath) -> None:
        """Writes files for `load` and AutoTokenizer.from_pretrained.

        Raises:
            UserError: the folder cannot be written.
        """
        write_backend(folder, self._backend, bos_token=START_TOKEN, eos_token=END_TOKEN)


def clean(caption: str) -> str:
    """Repairs broken characters, decodes HTML entities, collapses white space, lowercases."""
    repaired = html.unescape(html.unescape(ftfy.fix_text(caption)))
    return " ".join(repaired.split()).lower()


def _backend(vocab: Vocab, merges: Merges) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, end_of_word_suffix=END_OF_WORD)
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace(END_OF_WORD, SPACE), decoders.ByteLevel()]
    )
    return backend


def _byte_characters() -> list[str]:
    """GPT-2's characters for the 256 bytes: printable bytes unchanged, the others from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(others)]


def _unpacked(path: AnyPath) -> bytes:
    """The contents of a small gzip file. Raises ValueError if they are large."""
    with path.open("rb") as file, gzip.GzipFile(fileobj=file) as packed:
        content = packed.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path.name} is larger than {MAX_BYTES:,} bytes")
    return content
