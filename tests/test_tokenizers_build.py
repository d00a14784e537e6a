"""The tokenizer of a run."""

from pathlib import Path

import pytest
from helpers.numbered_images import write_images

from glide_jax.config import DataConfig
from glide_jax.data.folder import open_folder
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.tokenizers.build import make_tokenizer
from glide_jax.errors import UserError


def test_make_tokenizer_trains_or_loads(tmp_path: Path) -> None:
    source = open_folder(write_images(tmp_path / "images", 40), "all", 0.0)

    def make(name: str, vocab_size: int) -> Tokenizer:
        return make_tokenizer(DataConfig(tokenizer=name), vocab_size, source)

    trained = make("train", 300)
    assert trained.vocab_size <= 300
    _, mask = trained.encode(["number 12"], 16)
    assert mask.sum() <= 3
    trained.save(tmp_path / "saved")
    assert make(str(tmp_path / "saved"), 300).vocab_size == trained.vocab_size
    with pytest.raises(UserError, match=rf"more than the model's 260: .*={trained.vocab_size}$"):
        make(str(tmp_path / "saved"), 260)
    with pytest.raises(UserError, match=r"no such folder: \./nowhere"):
        make("./nowhere", 300)
