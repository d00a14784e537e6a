"""CLIP's tokenizer: cleaning, words, start and end tokens."""

import gzip
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.tokenizers.clip_bpe import (
    CLIP_FILE,
    ClipTokenizer,
    clean,
)
from glide_jax.data.tokenizers.files import MAX_BYTES
from glide_jax.errors import UserError

CAPTIONS = [
    f"a {size} {color} {shape} on a {color} background"
    for size in ("small", "large")
    for color in ("red", "blue", "café")
    for shape in ("star", "ring")
]
TRAINED = ClipTokenizer.train(CAPTIONS, 600)


@pytest.fixture(scope="module")
def released() -> Path:
    """CLIP's own file of merges."""
    if "GLIDE_JAX_VOCAB" not in os.environ:
        pytest.skip(f"GLIDE_JAX_VOCAB does not name a folder with {CLIP_FILE}")
    return Path(os.environ["GLIDE_JAX_VOCAB"]) / CLIP_FILE


def test_tokens_equal_those_of_the_original(released: Path, tmp_path: Path) -> None:
    """Tokens of the released model for difficult prompts, from every vocabulary format."""
    golden = json.loads((Path(__file__).parent / "golden" / "tokens.json").read_text())
    (tmp_path / "published").mkdir()
    shutil.copy(released, tmp_path / "published")
    tokenizer = ClipTokenizer.load(released)
    tokenizer.save(tmp_path / "saved")
    model = json.loads((tmp_path / "saved" / "tokenizer.json").read_text())["model"]
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (tmp_path / "hub" / "merges.txt").write_text("\n".join(lines) + "\n")
    loaded = [ClipTokenizer.load(tmp_path / name) for name in ("published", "saved", "hub")]
    for found in (tokenizer, *loaded, ClipTokenizer.from_hub(str(tmp_path / "saved"))):
        assert (found.vocab_size, found.start_id, found.end_id) == (49_408, 49_406, 49_407)
        tokens, mask = found.encode([row["prompt"] for row in golden], 77)
        np.testing.assert_array_equal(tokens, [row["clip_tokens"] for row in golden])
        np.testing.assert_array_equal(mask.sum(axis=1), [row["clip_length"] for row in golden])
        assert found.truncated == 1


def test_captions_have_start_and_end_tokens_and_zero_padding() -> None:
    tokens, mask = TRAINED.encode(["A Red  STAR ", "", "a red star"], 12)
    assert tokens.dtype == np.int32
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(tokens[0], tokens[2])
    length = int(mask[0].sum())
    assert 5 <= length < 12
    assert mask[0, :length].all()
    assert (tokens[0, 0], tokens[0, length - 1]) == (TRAINED.start_id, TRAINED.end_id)
    assert not tokens[0, length:].any()
    assert TRAINED.decode(tokens[0, :length].tolist()) == "a red star"
    assert tokens[1].tolist() == [TRAINED.start_id, TRAINED.end_id] + [0] * 10
    assert mask[1].sum() == 2


def test_truncation_keeps_the_end_token_and_is_counted() -> None:
    tokenizer = ClipTokenizer.train(CAPTIONS, 600)
    complete, mask = tokenizer.encode([CAPTIONS[0]], 64)
    assert tokenizer.truncated == 0
    cut, cut_mask = tokenizer.encode([CAPTIONS[0], "a"], 5)
    assert cut[0].tolist() == [*complete[0, :4], tokenizer.end_id]
    assert cut_mask[0].all()
    assert tokenizer.truncated == 1
    length = int(mask.sum())
    tokenizer.encode([CAPTIONS[0]], length)
    assert tokenizer.truncated == 1


@pytest.mark.parametrize("kind", [Tokenizer, ClipTokenizer])
def test_captions_that_are_not_utf8_are_refused(kind: type) -> None:
    with pytest.raises(UserError, match=r"^the caption 'caf\\udce9' is not UTF-8"):
        kind.train(["a"], 600).encode(["caf\udce9"], 4)


def test_captions_are_cleaned() -> None:
    assert clean("  Tabs\tand\n LINES ") == "tabs and lines"
    assert clean("&amp;lt;b&gt; cafÃ©") == "<b> café"
    assert clean("“curly”") == '"curly"'


def test_special_tokens_at_the_start_of_a_word_are_encoded_as_such() -> None:
    [row], _ = TRAINED.encode(["<|ENDOFTEXT|> !<|endoftext|>"], 40)
    assert row[1] == TRAINED.end_id
    assert (row == TRAINED.end_id).sum() == 2  # the first in the caption, and the final one


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_text_is_decoded_unchanged_except_for_spaces(text: str) -> None:
    """Byte-level: every text can be encoded, except for white space between words."""
    [tokens], [mask] = TRAINED.encode([text], 400)
    decoded = TRAINED.decode(tokens[mask].tolist())
    special = ("<|startoftext|>", "<|endoftext|>")
    if not any(token in clean(text) for token in special):
        assert "".join(decoded.split()) == "".join(clean(text).split())


def test_training_merges_words_up_to_vocab_size() -> None:
    assert ClipTokenizer.train(CAPTIONS, 530).vocab_size == 530
    _, mask = TRAINED.encode(["a red star on a red background"], 64)
    assert mask.sum() <= 10
    assert ClipTokenizer.train([], 514).vocab_size == 514
    with pytest.raises(UserError, match=r"vocab_size = 513 is too small .* least 514"):
        ClipTokenizer.train(CAPTIONS, 513)


def test_a_saved_tokenizer_is_loaded_unchanged(tmp_path: Path) -> None:
    TRAINED.save(tmp_path / "run" / "tokenizer")
    loaded = ClipTokenizer.load(tmp_path / "run" / "tokenizer")
    assert (loaded.vocab_size, loaded.end_id) == (TRAINED.vocab_size, TRAINED.end_id)
    for ours, theirs in zip(loaded.encode(CAPTIONS, 16), TRAINED.encode(CAPTIONS, 16), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"add tokenizer.json, .* or {CLIP_FILE}"):
        ClipTokenizer.load(tmp_path)
    (tmp_path / CLIP_FILE).write_bytes(b"not gzip")
    with pytest.raises(UserError, match=f"cannot read the tokenizer in {tmp_path}"):
        ClipTokenizer.load(tmp_path)
    (tmp_path / CLIP_FILE).write_bytes(gzip.compress(bytes(MAX_BYTES + 1)))
    with pytest.raises(UserError, match="is larger than 33,554,432 bytes"):
        ClipTokenizer.load(tmp_path)
    Tokenizer.train(CAPTIONS, 300).save(tmp_path / "glide")
    with pytest.raises(UserError, match=r"not a CLIP tokenizer"):
        ClipTokenizer.load(tmp_path / "glide")
