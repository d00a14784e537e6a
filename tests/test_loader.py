"""The loader: order, resumption, broken records, validation."""

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import model_set
from helpers.numbered_images import numbers, write_images
from helpers.tiny import get_config
from hypothesis import given, settings
from hypothesis import strategies as st

from glide_jax.config import Config, DiffusionConfig, LowResConfig, MaskConfig
from glide_jax.data.folder import FolderSource, open_folder
from glide_jax.data.loader import (
    INDEX_SHUFFLE_RECORDS,
    Loader,
    _shuffled,
)
from glide_jax.data.records import Record, Source
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.validation import validation_batches, validation_examples
from glide_jax.errors import UserError
from glide_jax.shapes import Batch

IMAGES = 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FolderSource:
    """Twenty numbered images. Even ones have a second caption."""
    folder = write_images(tmp_path_factory.mktemp("images"), IMAGES)
    for number in range(0, IMAGES, 2):
        with (folder / f"{number:02}.txt").open("a") as file:
            file.write(f"or {number}\n")
    return open_folder(folder, "all", 0.0)


TOKENIZER = Tokenizer.train(["number or"] * 2, 300)


def config(batch_examples: int = 8, seed: int = 0, **data: Any) -> Config:
    tiny = get_config()
    return dataclasses.replace(
        tiny,
        data=dataclasses.replace(tiny.data, **({"loader_threads": 2} | data)),
        train=dataclasses.replace(tiny.train, batch_examples=batch_examples, seed=seed),
    )


def captions(batch: Batch) -> list[str]:
    rows = zip(batch["tokens"], batch["token_mask"], strict=True)
    return [TOKENIZER.decode(tokens[mask].tolist()) for tokens, mask in rows]


def seen(loader: Loader, count: int) -> list[tuple[int, str]]:
    """Number and caption of each example in the next `count` batches."""
    with loader:
        return [
            pair
            for batch in islice(loader, count)
            for pair in zip(numbers(batch["image"]), captions(batch), strict=True)
        ]


def test_a_batch_has_the_promised_shapes(source: FolderSource) -> None:
    settings = config(batch_examples=6)
    with Loader(source, TOKENIZER, settings) as loader:
        batch = next(loader)
    shapes = {name: (value.shape, value.dtype) for name, value in batch.items()}
    assert shapes == {
        "image": ((6, 8, 8, 3), np.uint8),
        "tokens": ((6, 8), np.int32),
        "token_mask": ((6, 8), np.bool_),
    }


def test_captions_belong_to_their_images(source: FolderSource) -> None:
    pairs = seen(Loader(source, TOKENIZER, config(caption_dropout=0.3)), 200)
    dropped = sum(caption == "" for _, caption in pairs)
    assert abs(dropped / len(pairs) - 0.3) < 0.05
    counts = Counter((number, caption) for number, caption in pairs if caption)
    for number in range(IMAGES):
        if number % 2:
            assert counts.pop((number, f"number {number}")) > 0
        else:  # both captions, with similar frequencies
            ours, theirs = (
                counts.pop((number, f"number {number}")),
                counts.pop((number, f"or {number}")),
            )
            assert 0.4 < ours / theirs < 2.5
    assert not counts


@given(
    batch_examples=st.sampled_from([4, 12, 20, 28]),
    processes=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 2**32 - 1),
    start=st.integers(0, 100),
)
@settings(max_examples=15, deadline=None)
def test_examples_depend_only_on_seed_and_number(
    source: FolderSource, batch_examples: int, processes: int, seed: int, start: int
) -> None:
    """The batch size, number of processes and resumption do not change them."""
    small_batches = config(batch_examples=4, seed=seed)
    batches = config(batch_examples=batch_examples, seed=seed)
    expected = seen(Loader(source, TOKENIZER, small_batches), (start + 2 * batch_examples) // 4 + 1)
    parts = [
        seen(
            Loader(
                source,
                TOKENIZER,
                batches,
                process_index=index,
                process_count=processes,
                state=json.loads(json.dumps({"examples": start})),
            ),
            2,
        )
        for index in range(processes)
    ]
    size = batch_examples // processes
    ours = [pair for k in range(2) for part in parts for pair in part[k * size : (k + 1) * size]]
    assert ours == expected[start : start + 2 * batch_examples]


def test_each_epoch_has_every_record_once_in_a_new_order(source: FolderSource) -> None:
    pairs = seen(Loader(source, TOKENIZER, config(batch_examples=4)), 15)
    epochs = [[number for number, _ in pairs[i : i + IMAGES]] for i in (0, 20, 40)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(IMAGES))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    other_seed = seen(Loader(source, TOKENIZER, config(batch_examples=4, seed=1)), 5)
    assert [number for number, _ in other_seed] != epochs[0]


@pytest.mark.parametrize("records", [1, 7, INDEX_SHUFFLE_RECORDS - 1, INDEX_SHUFFLE_RECORDS])
def test_small_and_large_sources_are_shuffled(records: int) -> None:
    places = range(3 * records)
    shuffled, again, other = (_shuffled(records, seed) for seed in (0, 0, 1))
    indices = [shuffled[place] for place in places]
    epochs = [indices[i * records : (i + 1) * records] for i in range(3)]
    assert all(sorted(epoch) == list(range(records)) for epoch in epochs)
    assert indices == [again[place] for place in reversed(places)][::-1]
    if records > 1:
        assert epochs[0] != epochs[1] != epochs[2]
        assert epochs[0] != [other[place] for place in range(records)]


def test_a_loader_resumes_from_its_state(source: FolderSource) -> None:
    uninterrupted = seen(Loader(source, TOKENIZER, config(crop="random", horizontal_flip=True)), 7)
    with Loader(source, TOKENIZER, config(crop="random", horizontal_flip=True)) as first:
        for _ in range(3):
            next(first)
        state = first.state()
    assert state == {"examples": 24}
    resumed = Loader(source, TOKENIZER, config(crop="random", horizontal_flip=True), state=state)
    assert seen(resumed, 4) == uninterrupted[3 * 8 :]
    assert resumed.state() == {"examples": 56}


def test_a_loader_that_resumes_with_another_batch_size_skips_and_repeats_nothing(
    source: FolderSource,
) -> None:
    uninterrupted = seen(Loader(source, TOKENIZER, config(crop="random")), 8)
    first = Loader(source, TOKENIZER, config(crop="random"))
    before = seen(first, 3)
    second = Loader(source, TOKENIZER, config(batch_examples=5, crop="random"), state=first.state())
    between = seen(second, 2)
    after = Loader(source, TOKENIZER, config(batch_examples=6, crop="random"), state=second.state())
    assert before + between + seen(after, 5) == uninterrupted
    with pytest.raises(UserError, match="counted batches instead of examples"):
        Loader(source, TOKENIZER, config(), state={"batch": 3})


def test_the_number_of_threads_changes_nothing(source: FolderSource) -> None:
    one, five = (
        seen(Loader(source, TOKENIZER, config(loader_threads=threads)), 6) for threads in (1, 5)
    )
    assert one == five


def test_a_batch_larger_than_the_data_set(tmp_path: Path) -> None:
    source = open_folder(write_images(tmp_path, 1), "all", 0.0)
    assert [number for number, _ in seen(Loader(source, TOKENIZER, config()), 2)] == [0] * 16


def test_batch_sizes_not_divisible_by_processes_are_refused(source: FolderSource) -> None:
    with pytest.raises(UserError, match=r"train.batch_examples \(8\) must be divisible by .*\(3\)"):
        Loader(source, TOKENIZER, config(), process_count=3)


def test_bad_records_are_replaced_the_same_way_every_time(tmp_path: Path) -> None:
    folder = write_images(tmp_path, 10)
    source = open_folder(folder, "all", 0.0)
    (folder / "03.png").write_bytes((folder / "03.png").read_bytes()[:40])
    (folder / "04.png").unlink()
    settings = config(batch_examples=5, max_bad_fraction=0.2)
    loader = Loader(source, TOKENIZER, settings)
    pairs = seen(loader, 4)
    assert sorted(number for number, _ in pairs[:10]) == [0, 1, 2, 5, 5, 5, 6, 7, 8, 9]
    assert loader.bad_records == 2
    assert seen(Loader(source, TOKENIZER, settings, state={"examples": 10}), 2) == pairs[10:]


def test_too_many_bad_records_reach_the_caller(tmp_path: Path) -> None:
    folder = write_images(tmp_path, 10)
    source = open_folder(folder, "all", 0.0)
    for number in range(4):
        (folder / f"{number:02}.png").write_bytes(b"no image")
    with (
        pytest.raises(UserError, match=r"^[34] of 10 records .*\.png: not an image.*\.png: not an"),
        Loader(source, TOKENIZER, config(max_bad_fraction=0.2)) as loader,
    ):
        next(loader)
        next(loader)
    with pytest.raises(UserError, match=r"^[34] of 10 records"):
        validation_examples(source, config(max_bad_fraction=0.2), 8)


def test_validation_batches_are_full_ordered_and_without_dropout(source: FolderSource) -> None:
    def validate(count: int, **process: int) -> list[tuple[int, str]]:
        settings = config(batch_examples=4, caption_dropout=1.0, crop="random")
        examples = validation_examples(source, settings, count)
        return [
            pair
            for batch in validation_batches(examples, TOKENIZER, settings, **process)
            for pair in zip(numbers(batch["image"]), captions(batch), strict=True)
        ]

    in_order = [(number, f"number {number}") for number in range(IMAGES)]
    assert validate(8) == in_order[:8]
    assert validate(6) == in_order[:4]
    assert validate(3) == in_order[:3] + in_order[:1]
    assert validate(1000) == in_order
    assert validate(8, process_index=1, process_count=2) == in_order[2:4] + in_order[6:8]


def test_validation_leaves_out_broken_records_and_repeats_none(tmp_path: Path) -> None:
    source = open_folder(write_images(tmp_path, 8), "all", 0.0)
    for number in (0, 3):
        (tmp_path / f"{number:02}.png").write_bytes(b"no image")
    settings = config(max_bad_fraction=0.3)
    for count, expected in ((5, [1, 2, 4, 5, 6]), (8, [1, 2, 4, 5, 6, 7])):
        examples = validation_examples(source, settings, count)
        assert [int(example.caption.split()[1]) for example in examples] == expected
    (tmp_path / "01.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"^no record can be used: .*00\.png.*01\.png"):
        validation_examples(_First(source, 2), config(max_bad_fraction=1.0), 2)


class _First:
    """The first records of a source."""

    def __init__(self, source: Source, count: int) -> None:
        self._source, self._count = source, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Record:
        return self._source[index]

    def captions(self, index: int) -> tuple[str, ...]:
        return self._source.captions(index)


def test_a_program_exits_without_closing_the_loader(tmp_path: Path) -> None:
    write_images(tmp_path, 4)
    program = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from helpers.tiny import get_config
from glide_jax.data.folder import open_folder
from glide_jax.data.loader import Loader
from glide_jax.data.tokenizers.bpe import Tokenizer
source = open_folder(Path({str(tmp_path)!r}), "all", 0.0)
loader = Loader(source, Tokenizer.train(["a"], 300), get_config())
next(loader)
print(loader.state())
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert result.stdout == "{'examples': 8}\n"
    assert result.stderr == ""


def with_model(base: Config, **changes: Any) -> Config:
    return dataclasses.replace(base, model=dataclasses.replace(base.model, **changes))


def test_inpainting_batches_have_masks_and_their_location_in_captions(source: FolderSource) -> None:
    masks = MaskConfig(rectangle=1.0, brush=0.0, half_plane=0.0, full=0.0, caption_location=1.0)
    settings = with_model(config(masks=masks, caption_dropout=0.0), inpaint=True)
    with Loader(source, TOKENIZER, settings) as loader:
        first, second = (next(loader) for _ in range(2))
    assert first["mask"].shape == (8, 8, 8, 1) and first["mask"].dtype == np.bool_
    assert 0 < first["mask"].mean() < 1
    assert (first["mask"] != second["mask"]).any()
    again = [validation_examples(source, settings, 2) for _ in range(2)]
    np.testing.assert_array_equal(*([example.mask for example in found] for found in again))

    long_text = dataclasses.replace(settings.denoiser.text, length=32)
    with Loader(source, TOKENIZER, with_model(settings, text=long_text)) as loader:
        texts = captions(next(loader))
    assert any(", at the" in text or ", on the" in text for text in texts)


def test_an_upsampler_trains_on_crops_and_previews_full_images(
    source: FolderSource,
) -> None:
    low_res = LowResConfig(crop_px=4)
    settings = with_model(config(), low_res_px=4)
    settings = dataclasses.replace(
        settings, data=dataclasses.replace(settings.data, low_res=low_res)
    )
    with Loader(source, TOKENIZER, settings) as loader:
        assert next(loader)["image"].shape == (8, 4, 4, 3)
    for full_size, px in ((False, 4), (True, 8)):
        examples = validation_examples(source, settings, 2, full_size=full_size)
        assert [example.pixels.shape for example in examples] == [(px, px, 3)] * 2


def clip_settings(batch_examples: int, **data: Any) -> Config:
    return dataclasses.replace(
        config(batch_examples, **data),
        model=model_set.clip_config().model,
        diffusion=DiffusionConfig(),
    )


def test_captions_are_never_dropped_for_clip(source: FolderSource) -> None:
    with Loader(source, TOKENIZER, clip_settings(8, caption_dropout=1.0)) as loader:
        assert all(captions(next(loader)))
