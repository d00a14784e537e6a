"""Tokenizer files of strangers: loaded, or refused in one line."""

import json
import os
import random

import numpy as np
import pytest
from helpers.tiny import get_config

from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.tokenizers.clip_bpe import ClipTokenizer
from glide_jax.data.tokenizers.files import MAX_BYTES
from glide_jax.errors import UserError
from glide_jax.runs.folder import Run

CAPTIONS = ["a red star", "a blue circle on a green square"] * 20
KINDS = {
    Tokenizer: Tokenizer.train(CAPTIONS, 300),
    ClipTokenizer: ClipTokenizer.train(CAPTIONS, 560),
}
STRANGE = (
    *(None, True, -1, 0, 2**31, 2**40, 10**400, 1.5, "", "x", "a" * 1000, "ByteLevel", "WordLevel"),
    *("Unigram", "WordPiece", [], {}, [1], ["a", "b"], {"type": "Replace"}, {"type": "BPE"}),
)
DOUBLING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def saved(request, tmp_path):
    """A kind of tokenizer, a folder with one, and the JSON of its file."""
    KINDS[request.param].save(tmp_path)
    return request.param, tmp_path, json.loads((tmp_path / "tokenizer.json").read_text())


def refusal(kind, folder):
    with pytest.raises(UserError) as error:
        kind.load(folder)
    line = str(error.value)
    assert str(folder) in line and "\n" not in line and len(line) < len(str(folder)) + 350
    return line


def mutated(rng, values):
    values = json.loads(json.dumps(values))
    for _ in range(rng.randint(1, 3)):
        at, key = values, rng.choice(list(values))
        while isinstance(at[key], (dict, list)) and at[key] and rng.random() < 0.8:
            at = at[key]
            key = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
        at[key] = json.loads(json.dumps(rng.choice(STRANGE)))
    return json.dumps(values)


def test_random_mutations_of_a_tokenizer_load_or_are_refused(saved):
    kind, folder, values = saved
    rng, loaded = random.Random(0), 0
    for _ in range(300):
        (folder / "tokenizer.json").write_text(mutated(rng, values))
        try:
            tokenizer = kind.load(folder)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 600
        else:
            loaded += 1
            tokens, _ = tokenizer.encode(["a red star", ""], 8)
            assert np.all((tokens >= 0) & (tokens < tokenizer.vocab_size))
    assert 0 < loaded < 300


@pytest.mark.parametrize(
    ("text", "line"),
    [
        pytest.param("[" * 10**5, "cannot read the tokenizer", id="deep"),
        pytest.param("[]", "tokenizer.json is not a JSON object", id="list"),
        pytest.param("{}", "tokenizer.json has no model", id="empty"),
        pytest.param("\0", "cannot read the tokenizer", id="binary"),
        pytest.param(" " * (MAX_BYTES + 1), "larger than 34 MB", id="large"),
    ],
)
def test_files_that_are_no_tokenizer_are_refused(saved, text, line):
    kind, folder, _ = saved
    (folder / "tokenizer.json").write_text(text)
    assert line in refusal(kind, folder)


def test_steps_that_multiply_captions_are_refused(saved):
    kind, folder, values = saved
    steps = {"type": "Sequence", "normalizers": [DOUBLING] * 10}
    (folder / "tokenizer.json").write_text(json.dumps(values | {"normalizer": steps}))
    assert "its steps make more than 1,000 characters of one" in refusal(kind, folder)


def test_tables_longer_than_the_file_are_refused(saved):
    kind, folder, values = saved
    damaged = {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="}  # 2**32 - 1 bytes
    steps = {"type": "Sequence", "normalizers": [{"type": "NFC"}, damaged]}
    (folder / "tokenizer.json").write_text(json.dumps(values | {"normalizer": steps}))
    assert "precompiled_charsmap is shorter than it declares" in refusal(kind, folder)


def test_a_caption_on_which_the_library_panics_is_named(tmp_path):
    KINDS[Tokenizer].save(tmp_path)
    file = tmp_path / "tokenizer.json"
    splits = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}
    splits |= {"invert": False}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pre_tokenizer": splits}))
    tokenizer = Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match=r"^the tokenizer cannot encode 'aaa.*: .*retry-limit") as e:
        tokenizer.encode(["a" * 40 + "b"], 8)
    assert "\n" not in str(e.value)


def test_merges_that_make_the_library_panic_are_refused(saved):
    kind, folder, values = saved
    values["model"]["continuing_subword_prefix"] = "##"
    (folder / "tokenizer.json").write_text(json.dumps(values))
    assert "continuing_subword_prefix" in refusal(kind, folder)


@pytest.mark.parametrize(
    ("vocab", "merges", "line"),
    [
        ({"a": -1}, "", "the id of 'a' is -1"),
        ({"a": 2**40}, "", "the id of 'a' is 1099511627776"),
        ({"a": "1"}, "", "the id of 'a' is '1'"),
        ([], "", "vocab.json is not a JSON object"),
        ({}, "", "it has no vocabulary"),
        ({"a": 1}, "#version\na b c\n", "'a b c' is not a merge of two tokens"),
        ({"a": 1}, "a b\n", ""),
    ],
)
def test_vocabularies_that_cannot_be_are_refused(tmp_path, vocab, merges, line):
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text(merges)
    for kind in KINDS:
        assert line in refusal(kind, tmp_path)


@pytest.mark.parametrize(
    "content", ["[]", '{"eos_token": 7}', '{"eos_token": {"content": 7}}', "{" * 10**5]
)
def test_settings_of_a_tokenizer_are_checked(tmp_path, content):
    KINDS[Tokenizer].save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(content)
    refusal(Tokenizer, tmp_path)


def test_special_files_are_refused_at_once(saved):
    kind, folder, _ = saved
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    assert "no tokenizer in" in refusal(kind, folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("/dev/zero")
    assert "no tokenizer in" in refusal(kind, folder)


def test_a_run_refuses_the_tokenizer_of_another_model(tmp_path):
    config = get_config()
    run = Run.create(tmp_path / "run", config, KINDS[Tokenizer])
    assert run.tokenizer.vocab_size <= 300
    Tokenizer.train([*CAPTIONS, *map(str, range(1000))] * 2, 400).save(tmp_path / "run/tokenizer")
    with pytest.raises(UserError, match=r"entries, but model\.text\.vocab_size is 300: it"):
        _ = Run(tmp_path / "run", config).tokenizer
