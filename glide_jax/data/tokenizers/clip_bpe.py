"""Captions to tokens by CLIP's rule (arXiv 2103.00020), with a vocabulary from anywhere.

The caption is cleaned (broken characters mended, HTML entities resolved, white space collapsed),
lower-cased, split into words and these by byte-level BPE, in which a word's last piece ends in
`</w>`. The tokens stand between a start and an end token; zeros follow.
"""

import gzip
import html
import json
import threading
from collections.abc import Iterable, Sequence

import ftfy
import numpy as np
import tokenizers
from jaxtyping import Bool, Int32
from tokenizers import decoders, models, pre_tokenizers, trainers

from glide_jax.data.tokenizers.bpe import GPT2_FILES, Tokenizer, hub_backend, write_backend
from glide_jax.errors import UserError
from glide_jax.storage import AnyPath

START_TOKEN = "<|startoftext|>"
END_TOKEN = "<|endoftext|>"
END_OF_WORD = "</w>"
SPACE = "Ġ"
"""How byte-level vocabularies write a space."""

CLIP_FILE = "bpe_simple_vocab_16e6.txt.gz"
"""The vocabulary as OpenAI published it: merges, of which CLIP uses the first CLIP_MERGES."""
CLIP_MERGES = 48_894

WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
)
"""What a word is: a special token, an English ending, letters, one digit, or other signs."""

SMALLEST_VOCABULARY = 514
"""Every byte, within a word and at its end, the start and the end token."""

Merges = list[tuple[str, str]]


class ClipTokenizer(Tokenizer):
    """Byte-level BPE with CLIP's cleaning and padding. Safe for threads.

    Args:
        vocab: ids of the pieces; bytes are written as GPT-2 writes them.
        merges: pairs of pieces that become one, the first ones first.

    Raises:
        UserError: the vocabulary is of another kind.
    """

    def __init__(self, vocab: dict[str, int], merges: Merges) -> None:
        for token in (START_TOKEN, END_TOKEN, "a" + END_OF_WORD):
            if token not in vocab:
                raise UserError(f"not a tokenizer of CLIP's kind: it has no {token}")
        self._backend = _backend(vocab, merges)
        self._words = self._backend.pre_tokenizer
        self._model = self._backend.model
        self._special = {token: vocab[token] for token in (START_TOKEN, END_TOKEN)}
        self._lock = threading.Lock()
        self.start_id: int = vocab[START_TOKEN]
        self.end_id: int = vocab[END_TOKEN]
        self.vocab_size: int = 1 + max(vocab.values())
        """One more than the highest id: the rows that the model's embedding needs."""
        self.truncated: int = 0
        """Captions, so far, that did not fit the context."""

    def encode(
        self, captions: Sequence[str], length: int
    ) -> tuple[Int32[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """Tokens of each caption; what does not fit is cut off before the end token.

        Args:
            captions: b texts. One that spells out a special token gets it, as in the original.
            length: of the context, at least 2.

        Returns:
            tokens, in [0, vocab_size), and the mask that is True from start to end token.
        """
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
        """The cleaned text of unpadded tokens, start and end left out."""
        kept = [token for token in tokens if token not in (self.start_id, self.end_id)]
        return self._backend.decode(kept, skip_special_tokens=False).removesuffix(" ")

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int) -> "ClipTokenizer":
        """Learns a vocabulary, laid out as CLIP's; the same captions give the same one.

        Args:
            captions: in any case; `glide_jax.data.tokenizers.bpe.TRAINING_CAPTIONS` are plenty.
            vocab_size: entries, at most; few captions give fewer.

        Raises:
            UserError: vocab_size is below SMALLEST_VOCABULARY.
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise UserError(
                f"model.text.vocab_size = {vocab_size} is too small to train CLIP's tokenizer: at "
                f"least {SMALLEST_VOCABULARY}, every byte twice, the start and the end token"
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
        return cls.of_merges(learned[: vocab_size - SMALLEST_VOCABULARY])

    @classmethod
    def of_merges(cls, merges: Merges) -> "ClipTokenizer":
        """CLIP's layout: the bytes, the bytes at a word's end, the merges, start and end."""
        signs = _byte_signs()
        pieces = [*signs, *(sign + END_OF_WORD for sign in signs)]
        pieces += [a + b for a, b in merges]
        pieces += [START_TOKEN, END_TOKEN]
        return cls({piece: i for i, piece in enumerate(pieces)}, merges)

    @classmethod
    def load(cls, path: AnyPath) -> "ClipTokenizer":
        """Reads a vocabulary.

        Args:
            path: CLIP's own file of merges (bpe_simple_vocab_16e6.txt.gz), or a folder that has
                it, or `tokenizer.json`, or `vocab.json` + `merges.txt`.

        Raises:
            UserError: there is none of them, or it cannot be read.
        """
        clip_file = path if path.is_file() else path / CLIP_FILE
        whole, vocab, merges = (path / name for name in ("tokenizer.json", *GPT2_FILES))
        try:
            if whole.is_file():
                return cls(*_parts(whole.read_text(encoding="utf-8")))
            if vocab.is_file() and merges.is_file():
                lines = merges.read_text(encoding="utf-8").splitlines()
                return cls(json.loads(vocab.read_text(encoding="utf-8")), _pairs(lines))
            if clip_file.is_file():
                lines = gzip.decompress(clip_file.read_bytes()).decode("utf-8").splitlines()
                return cls.of_merges(_pairs(lines[: 1 + CLIP_MERGES]))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        # gzip, JSON, text and the tokenizers library: each fails with exceptions of its own.
        except Exception as error:
            raise UserError(f"cannot read the tokenizer in {path}: {error}") from error
        raise UserError(
            f"no tokenizer in {path}: neither tokenizer.json nor {' with '.join(GPT2_FILES)} nor "
            f"{CLIP_FILE}"
        )

    @classmethod
    def from_hub(cls, name: str) -> "ClipTokenizer":
        """Downloads a tokenizer by its name on the hub, such as openai/clip-vit-base-patch32.

        Raises:
            UserError: there is none of this name, no network, or it is of another kind.
        """
        try:
            return cls(*_parts(hub_backend(name)[0].to_str()))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the tokenizer {name} is not of CLIP's kind: {error!r}") from error

    def save(self, folder: AnyPath) -> None:
        """Writes what `load`, and AutoTokenizer.from_pretrained, read.

        Raises:
            UserError: the folder cannot be written.
        """
        write_backend(folder, self._backend, bos_token=START_TOKEN, eos_token=END_TOKEN)


def clean(caption: str) -> str:
    """Mends broken characters, resolves HTML entities, collapses white space, lower-cases."""
    mended = html.unescape(html.unescape(ftfy.fix_text(caption)))
    return " ".join(mended.split()).lower()


def _backend(vocab: dict[str, int], merges: Merges) -> tokenizers.Tokenizer:
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


def _byte_signs() -> list[str]:
    """GPT-2's signs for the 256 bytes: printable ones as they are, then the others from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(others)]


def _pairs(lines: list[str]) -> Merges:
    """Of a file of merges, one a line, after a line with its version."""
    return [(a, b) for a, b in (line.split() for line in lines[1:] if line)]


def _parts(tokenizer_json: str) -> tuple[dict[str, int], Merges]:
    """Vocabulary and merges of a tokenizer.json, which keeps merges as pairs or as "a b"."""
    model = json.loads(tokenizer_json)["model"]
    merges = [tuple(m.split() if isinstance(m, str) else m) for m in model["merges"]]
    return model["vocab"], [(a, b) for a, b in merges]
