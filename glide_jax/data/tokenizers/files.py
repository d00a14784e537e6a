"""Files of a tokenizer, read within limits and checked: they may come from strangers."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from glide_jax.errors import UserError, first_line, shown
from glide_jax.storage import AnyPath, read_regular, text_lines

MAX_BYTES = 2**25
"""Size of a file. GPT-2's vocabulary takes 2 MB."""
MAX_ID = 2**24
MAX_GROWTH = 1000
"""Characters that the steps before and after the model may make of one."""

Vocab = dict[str, int]
Merges = list[tuple[str, str]]


@contextmanager
def tokenizer_errors(place: AnyPath) -> Iterator[None]:
    """Turns every failure to read a tokenizer into a UserError of one line."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    # The tokenizers library raises plain Exceptions, and PanicException, a BaseException.
    except BaseException as error:
        raise UserError(f"cannot read the tokenizer in {place}: {first_line(error)}") from error


def read_json(path: AnyPath) -> dict[str, Any]:
    """A JSON object. Raises OSError or ValueError."""
    values = json.loads(read_regular(path, MAX_BYTES))
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return values


def read_tokenizer(path: AnyPath) -> dict[str, Any]:
    """A tokenizer.json. Raises OSError or ValueError."""
    values = read_json(path)
    model = values.get("model")
    if not isinstance(model, dict):
        raise ValueError(f"{path.name} has no model")
    if "merges" in model and model.get("continuing_subword_prefix"):
        # With a token shorter than the prefix, the library panics.
        raise ValueError("a continuing_subword_prefix of merges is not supported")
    steps = [values.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")]
    if _growth(steps) > MAX_GROWTH:
        raise ValueError(f"its steps make more than {MAX_GROWTH:,} characters of one")
    _require_charsmaps(values.get("normalizer"))
    return values


def model_parts(tokenizer: dict[str, Any]) -> tuple[Vocab, Merges]:
    """Vocabulary and merges of a tokenizer.json, which stores merges as pairs or as "a b".

    Raises:
        ValueError: they are missing, or not of these types.
    """
    model = tokenizer["model"]
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise ValueError("it has no list of merges")
    return checked_vocab(model.get("vocab")), [_pair(merge) for merge in merges]


def read_vocab(path: AnyPath) -> Vocab:
    """A vocab.json. Raises OSError or ValueError."""
    return checked_vocab(read_json(path))


def read_merges(path: AnyPath) -> Merges:
    """A merges.txt. Raises OSError or ValueError."""
    return parse_merges(text_lines(read_regular(path, MAX_BYTES)))


def parse_merges(lines: list[str]) -> Merges:
    """One merge a line, after a line with the version if there is one. Raises ValueError."""
    first = 1 if lines and "#version" in lines[0] else 0
    return [_pair(line) for line in lines[first:] if line]


def checked_vocab(vocab: Any) -> Vocab:
    """Token ids. Raises ValueError unless they are whole numbers by token, in bounds."""
    if not isinstance(vocab, dict) or not vocab:
        raise ValueError("it has no vocabulary of ids by token")
    for token, number in vocab.items():
        if type(number) is not int or not 0 <= number < MAX_ID:
            raise ValueError(f"the id of {shown(token)} is {shown(number)}")
    return vocab


def _pair(merge: Any) -> tuple[str, str]:
    pair = merge.split() if isinstance(merge, str) else merge
    if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(x, str) for x in pair):
        raise ValueError(f"{shown(merge)} is not a merge of two tokens")
    return pair[0], pair[1]


def _require_charsmaps(step: Any) -> None:
    """Checks the tables of nested normalizers, for which the library reserves their declared size.

    Raises:
        ValueError: a table is shorter than it declares.
    """
    if isinstance(step, list):
        for part in step:
            _require_charsmaps(part)
    if not isinstance(step, dict):
        return
    charsmap = step.get("precompiled_charsmap")
    if isinstance(charsmap, str):
        table = base64.b64decode(charsmap)
        if int.from_bytes(table[:4], "little") > len(table):
            raise ValueError("a precompiled_charsmap is shorter than it declares")
    _require_charsmaps(step.get("normalizers"))


def _growth(steps: Any) -> int:
    """Characters that nested steps of a tokenizer.json may make of one, up to any bound."""
    if isinstance(steps, list):
        growth = 1
        for step in steps:
            growth = min(growth * _growth(step), MAX_GROWTH + 1)
        return growth
    if not isinstance(steps, dict):
        return 1
    inserted = [steps.get(name) for name in ("content", "prepend", "replacement")]
    lengths = [len(text) for text in inserted if isinstance(text, str)]
    return max([1, *lengths]) * _growth([x for x in steps.values() if isinstance(x, (dict, list))])
