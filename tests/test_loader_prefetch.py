"""Batches that are made ahead: copied to devices, and made in worker processes."""

import time

import pytest
from helpers.numbered_images import numbers, write_images
from test_loader import TOKENIZER, config, seen

from glide_jax.data.folder import FolderSource, open_folder
from glide_jax.data.loader import Loader
from glide_jax.errors import UserError
from glide_jax.shapes import Batch


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FolderSource:
    return open_folder(write_images(tmp_path_factory.mktemp("images"), 20), "all", 0.0)


def test_batches_are_placed_ahead_and_only_used_ones_are_counted(source: FolderSource) -> None:
    def place(batch: Batch) -> Batch:
        if len(placed) == 4:
            raise UserError("no memory")
        placed.append(numbers(batch["image"]))
        return batch

    placed: list[list[int]] = []
    expected = seen(Loader(source, TOKENIZER, config()), 3)
    with Loader(source, TOKENIZER, config(), place=place) as loader:
        found = [numbers(next(loader)["image"]) for _ in range(2)]
        while len(placed) < 4:
            time.sleep(0.01)
        assert found == placed[:2]
        assert loader.state() == {"examples": 16}
        assert numbers(next(loader)["image"]) == [number for number, _ in expected[16:]]
        next(loader)
        with pytest.raises(UserError, match="no memory"):  # once that batch is needed
            next(loader)
        assert loader.state() == {"examples": 32}
