"""GLIDE's tokenizer: encoding, training, files and the hub."""

import gzip
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glide_jax.data.tokenizers.bpe import END_TOKEN, Tokenizer
from glide_jax.errors import UserError, exit_on_user_error

CAPTIONS = [
    f"a {size} {color} {shape} on a {color} background"
    for size in ("small", "large")
    for color in ("red", "blue", "café")
    for shape in ("star", "ring")
]
TRAINED = Tokenizer.train(CAPTIONS, 320)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2's vocabulary files, unpacked from encoder.json.gz and vocab.bpe.gz."""
    if "GLIDE_JAX_VOCAB" not in os.environ:
        pytest.skip("GLIDE_JAX_VOCAB does not name a folder with encoder.json.gz and vocab.bpe.gz")
    folder = tmp_path_factory.mktemp("gpt2")
    for packed, name in (("encoder.json.gz", "vocab.json"), ("vocab.bpe.gz", "merges.txt")):
        data = gzip.decompress((Path(os.environ["GLIDE_JAX_VOCAB"]) / packed).read_bytes())
        (folder / name).write_bytes(data)
    return folder


def test_tokens_equal_those_of_the_original(gpt2: Path, tmp_path: Path) -> None:
    """Tokens of the released model for difficult prompts, before and after saving."""
    golden = json.loads((Path(__file__).parent / "golden" / "tokens.json").read_text())
    Tokenizer.load(gpt2).save(tmp_path / "saved")
    for tokenizer in (Tokenizer.load(gpt2), Tokenizer.load(tmp_path / "saved")):
        assert (tokenizer.vocab_size, tokenizer.end_id) == (50_257, 50_256)
        tokens, mask = tokenizer.encode([row["prompt"] for row in golden], 128)
        np.testing.assert_array_equal(tokens, [row["glide_tokens"] for row in golden])
        np.testing.assert_array_equal(mask.sum(axis=1), [row["glide_length"] for row in golden])


def test_captions_are_lowercased_padded_and_masked() -> None:
    tokens, mask = TRAINED.encode(["A Red STAR", "", "a red star"], 12)
    assert tokens.dtype == np.int32
    assert mask.dtype == np.bool_
    assert tokens.shape == mask.shape == (3, 12)
    np.testing.assert_array_equal(tokens[0], tokens[2])
    length = mask[0].sum()
    assert 3 <= length < 12
    assert mask[0, :length].all()
    assert TRAINED.decode(tokens[0, :length].tolist()) == "a red star"
    assert (tokens[0, length:] == TRAINED.end_id).all()
    # The empty caption, the unconditional input, is all padding.
    assert not mask[1].any()
    assert (tokens[1] == TRAINED.end_id).all()


def test_long_captions_are_truncated_and_counted() -> None:
    tokenizer = Tokenizer.train(CAPTIONS, 320)
    complete, mask = tokenizer.encode([CAPTIONS[0]], 64)
    length = int(mask.sum())
    truncated, _ = tokenizer.encode([CAPTIONS[0], "a", CAPTIONS[1]], 4)
    np.testing.assert_array_equal(truncated[0], complete[0, :4])
    assert tokenizer.truncated == 2
    tokenizer.encode([CAPTIONS[0]], length)
    assert tokenizer.truncated == 2


def test_threads_agree_on_tokens_and_count() -> None:
    tokenizer = Tokenizer.train(CAPTIONS, 320)
    expected, _ = tokenizer.encode(CAPTIONS, 4)
    results: list[np.ndarray] = []

    def work() -> None:
        results.extend(tokenizer.encode(CAPTIONS, 4)[0] for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tokenizer.truncated == 81 * len(CAPTIONS)
    assert all(np.array_equal(tokens, expected) for tokens in results)


@given(st.text(max_size=40))
def test_any_text_is_decoded_unchanged(text: str) -> None:
    """Byte-level: every text can be encoded, and special tokens in captions are plain text."""
    for caption in (text, text + END_TOKEN):
        tokens, mask = TRAINED.encode([caption], 400)
        kept = tokens[mask].tolist()
        assert TRAINED.end_id not in kept
        assert TRAINED.decode(kept) == caption.lower()


def test_training_merges_words_up_to_vocab_size() -> None:
    assert Tokenizer.train(CAPTIONS, 280).vocab_size == 280
    _, mask = TRAINED.encode(["a red star on a red background"], 64)
    assert mask.sum() <= 10
    assert TRAINED.vocab_size < 320  # no pair occurs twice
    assert Tokenizer.train([], 257).vocab_size == 257
    with pytest.raises(UserError, match=r"vocab_size = 256 is too small .* at least 257"):
        Tokenizer.train(CAPTIONS, 256)


@pytest.fixture(scope="module")
def other_process(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A process in an ASCII locale that trains a tokenizer and loads one with a non-ASCII token.

    Returns:
        The folder of the trained tokenizer and the lines of the output.
    """
    folder = tmp_path_factory.mktemp("tokenizers")
    TRAINED.save(folder / "german")
    tokenizer_file = folder / "german" / "tokenizer.json"
    saved = tokenizer_file.read_text(encoding="utf-8")
    tokenizer_file.write_text(saved.replace(END_TOKEN, "<ende·>"), encoding="utf-8")
    config = '{"eos_token": "<ende·>"}'
    (folder / "german" / "tokenizer_config.json").write_bytes(config.encode())
    program = (
        "import sys, pathlib, json; from glide_jax.data.tokenizers.bpe import Tokenizer;"
        "folder = pathlib.Path(sys.argv[1]);"
        "Tokenizer.train(json.loads(sys.argv[2]), 320).save(folder / 'trained');"
        "print(Tokenizer.load(folder / 'german').end_id)"
    )
    command = [sys.executable, "-c", program, folder, json.dumps(CAPTIONS)]
    ascii_locale = os.environ | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    result = subprocess.run(command, env=ascii_locale, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder / "trained", result.stdout.splitlines()


def test_training_is_deterministic_across_processes(
    other_process: tuple[Path, list[str]], tmp_path: Path
) -> None:
    trained, _ = other_process
    TRAINED.save(tmp_path)
    for path in tmp_path.iterdir():
        assert (trained / path.name).read_bytes() == path.read_bytes()


def test_files_are_utf_8_in_any_locale(other_process: tuple[Path, list[str]]) -> None:
    _, output = other_process
    assert output == [str(TRAINED.end_id)]


def test_a_saved_tokenizer_is_loaded_unchanged(tmp_path: Path) -> None:
    TRAINED.save(tmp_path / "run" / "tokenizer")
    loaded = Tokenizer.load(tmp_path / "run" / "tokenizer")
    assert (loaded.vocab_size, loaded.end_id) == (TRAINED.vocab_size, TRAINED.end_id)
    for ours, theirs in zip(loaded.encode(CAPTIONS, 16), TRAINED.encode(CAPTIONS, 16), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_folder_may_name_its_own_end_token(tmp_path: Path) -> None:
    TRAINED.save(tmp_path)
    saved = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(saved.replace(END_TOKEN, "</s>"))
    settings = tmp_path / "tokenizer_config.json"
    for named in ("</s>", {"content": "</s>", "lstrip": False}):
        settings.write_text(json.dumps({"eos_token": named}))
        assert Tokenizer.load(tmp_path).end_id == TRAINED.end_id
    settings.unlink()
    os.mkfifo(settings)  # ignored: reading it would block
    with pytest.raises(UserError, match=r"has no end token '<\|endoftext\|>'"):
        Tokenizer.load(tmp_path)


def test_folders_without_a_usable_tokenizer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"add tokenizer.json or vocab.json and merges.txt"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"half')
    with pytest.raises(UserError, match=f"cannot read the tokenizer in {tmp_path}"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="cannot write the tokenizer"):
        TRAINED.save(tmp_path / "tokenizer.json" / "inside a file")


def test_an_unreachable_hub_is_a_one_line_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit, match="2"), exit_on_user_error():
        Tokenizer.from_hub("glide-jax-no/such")
    errors = capsys.readouterr().err
    assert errors.splitlines()[-1].startswith("error: data.tokenizer 'glide-jax-no/such'")
    assert "Traceback" not in errors


def test_a_saved_tokenizer_is_loaded_as_from_the_hub(tmp_path: Path) -> None:
    """`save` writes the layout of the hub, which AutoTokenizer reads."""
    TRAINED.save(tmp_path)
    tokenizer = Tokenizer.from_hub(str(tmp_path))
    for ours, theirs in zip(
        tokenizer.encode(CAPTIONS, 16), TRAINED.encode(CAPTIONS, 16), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_code_from_the_hub_is_never_run(tmp_path: Path) -> None:
    TRAINED.save(tmp_path)
    (tmp_path / "code.py").write_text("raise SystemExit('it runs')\n")
    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["code.Own", "code.Own"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"is refused: it needs code from its repository"):
        Tokenizer.from_hub(str(tmp_path))
