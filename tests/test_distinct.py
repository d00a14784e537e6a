"""No image occurs twice in a batch of a CLIP."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
from helpers.numbered_images import write_images
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loader import IMAGES, TOKENIZER, clip_settings, seen

from glide_jax.data.distinct import distinct_in_batches
from glide_jax.data.folder import FolderSource, open_folder
from glide_jax.data.loader import Loader, _shuffled
from glide_jax.data.mixture import in_proportion
from glide_jax.errors import UserError


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FolderSource:
    return open_folder(write_images(tmp_path_factory.mktemp("images"), IMAGES), "all", 0.0)


@given(
    batch_examples=st.sampled_from([2, 6, 14, 18, 20]),
    first=st.integers(0, 60),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=8, deadline=None)
def test_no_batch_of_a_clip_repeats_an_image_across_epochs(
    source: FolderSource, batch_examples: int, first: int, seed: int
) -> None:
    """Nor do the processes of a run, each of which makes a part of the batch."""
    settings = clip_settings(batch_examples)
    settings = dataclasses.replace(settings, train=dataclasses.replace(settings.train, seed=seed))
    shares = [
        seen(
            Loader(
                source,
                TOKENIZER,
                settings,
                process_index=i,
                process_count=2,
                state={"examples": first},
            ),
            5,
        )
        for i in range(2)
    ]
    own = batch_examples // 2
    for batch in range(5):
        found = [n for share in shares for n, _ in share[batch * own : (batch + 1) * own]]
        assert len(set(found)) == batch_examples


def test_a_clip_sees_each_image_once_in_an_epoch_that_its_batches_divide(
    source: FolderSource,
) -> None:
    found = [number for number, _ in seen(Loader(source, TOKENIZER, clip_settings(10)), 4)]
    assert sorted(found[:20]) == sorted(found[20:]) == list(range(IMAGES))


def test_a_broken_image_is_replaced_by_one_that_a_clips_batch_does_not_have(tmp_path: Path) -> None:
    source = open_folder(write_images(tmp_path, 12), "all", 0.0)
    for number in (3, 4):
        (tmp_path / f"{number:02}.png").write_bytes(b"no image")
    found = seen(Loader(source, TOKENIZER, clip_settings(4, max_bad_fraction=0.2)), 30)
    for first in range(0, len(found), 4):
        assert len({number for number, _ in found[first : first + 4]}) == 4
    with (
        pytest.raises(UserError, match="no image remains to replace it in a CLIP's batch"),
        Loader(source, TOKENIZER, clip_settings(12, max_bad_fraction=0.2)) as loader,
    ):
        next(loader)


def test_no_batch_repeats_an_image_of_a_small_part_of_a_mixture() -> None:
    places = in_proportion([_shuffled(20, 0), _shuffled(3, 1)], (3.0, 1.0))
    choices = distinct_in_batches(places, first=7, batch_examples=10, images=23)
    batches = [[choices[7 + 10 * k + i].place for i in range(10)] for k in range(40)]
    assert all(len(set(batch)) == 10 for batch in batches)
    drawn = Counter(part for batch in batches for part, _ in batch)
    assert abs(drawn[1] - 100) < 10  # a quarter


def test_spares_of_a_batch_are_different_images_that_it_does_not_have() -> None:
    places = _shuffled(20, 0).map(lambda index: (0, index))
    choices = distinct_in_batches(places, first=4, batch_examples=6, images=20)
    batch = [choices[4 + 6 * 3 + i] for i in range(6)]
    spares = [place for choice in batch for place in choice.spares()]
    assert len({choice.place for choice in batch} | set(spares)) == 6 + len(spares) == 20
