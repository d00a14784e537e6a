"""Mixtures: proportions, epochs of each part, resuming, settings."""

import json
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from helpers.numbered_images import write_images
from helpers.parsing import parse_config
from test_loader import TOKENIZER, captions
from test_loader import config as loader_config

from glide_jax import config
from glide_jax.config import Config, DataConfig, Folder, MixturePart
from glide_jax.config.source_words import parse_source, spell_source
from glide_jax.data.folder import FolderSource, open_folder
from glide_jax.data.loader import Loader
from glide_jax.data.mixture import WEIGHT_RESOLUTION, MixtureSource, training_captions
from glide_jax.data.sources import open_source
from glide_jax.data.validation import validation_examples
from glide_jax.errors import UserError
from glide_jax.prepare.__main__ import main

SIZES = (3, 7, 20)
WEIGHTS = (1.0, 0.29, 2.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images with captions "number i"; i counts from 0, 100 and 200."""
    folders = []
    for part, count in enumerate(SIZES):
        folder = write_images(tmp_path_factory.mktemp("part"), count)
        for number in range(count):
            (folder / f"{number:02}.txt").write_text(f"number {100 * part + number}")
        folders.append(folder)
    return folders


@pytest.fixture(scope="module")
def parts(folders: list[Path]) -> list[FolderSource]:
    return [open_folder(folder, "all", 0.0) for folder in folders]


@pytest.fixture(scope="module")
def mixture(parts: list[FolderSource]) -> MixtureSource:
    return MixtureSource(parts, WEIGHTS)


def numbers_of(mixture: MixtureSource, batches: int, **options: int | dict[str, int]) -> list[int]:
    """The numbers in a loader's captions."""
    seed = options.pop("seed", 0)
    settings = loader_config(batch_examples=8, seed=seed, caption_dropout=0.0)
    with Loader(mixture, TOKENIZER, settings, **options) as loader:
        return [int(caption.split()[1]) for b in islice(loader, batches) for caption in captions(b)]


def test_parts_are_read_in_proportion_to_their_weights(mixture: MixtureSource) -> None:
    batches = 300
    counts = Counter(number // 100 for number in numbers_of(mixture, batches))
    for part, weight in enumerate(WEIGHTS):
        expected = 8 * batches * weight / sum(WEIGHTS)
        # The smallest weight is exact, the others to a hundredth of it; nothing is random.
        assert abs(counts[part] - expected) <= 2 + expected / WEIGHT_RESOLUTION / 2


def test_no_record_comes_twice_in_an_epoch_of_its_part(mixture: MixtureSource) -> None:
    numbers = numbers_of(mixture, 60)
    for part, size in enumerate(SIZES):
        own = [number for number in numbers if number // 100 == part]
        epochs = [own[i : i + size] for i in range(0, len(own) - size + 1, size)]
        assert len(epochs) > 1
        assert all(sorted(epoch) == [100 * part + i for i in range(size)] for epoch in epochs)
        assert any(epoch != epochs[0] for epoch in epochs)


def test_a_batch_depends_on_seed_and_number_alone(mixture: MixtureSource) -> None:
    numbers = numbers_of(mixture, 6)
    assert numbers_of(mixture, 3, state={"examples": 24}) == numbers[24:]
    assert numbers_of(mixture, 6, seed=1) != numbers
    halves = [numbers_of(mixture, 6, process_index=i, process_count=2) for i in range(2)]
    assert [n for k in range(6) for half in halves for n in half[4 * k : 4 * k + 4]] == numbers


def test_parts_of_one_size_have_orders_of_their_own(parts: list[FolderSource]) -> None:
    numbers = numbers_of(MixtureSource([parts[2], parts[2]], (1.0, 1.0)), 5)
    assert sorted(numbers) == sorted([*range(200, 220)] * 2)
    assert numbers[::2] != numbers[1::2]


def test_as_a_source_it_has_no_record_twice(mixture: MixtureSource) -> None:
    # The three records of weight 1 are used up first: 3 (1 + 0.29 + 2) = 9.87.
    numbers = [int(mixture.captions(i)[0].split()[1]) for i in range(len(mixture))]
    assert Counter(number // 100 for number in numbers) == {0: 3, 1: 1, 2: 5}
    assert len(set(numbers)) == len(numbers) == 9
    assert [mixture[i].captions for i in range(9)] == [mixture.captions(i) for i in range(9)]
    held_out = validation_examples(mixture, loader_config(), 8)
    assert [int(example.caption.split()[1]) for example in held_out] == numbers[:8]


def test_a_tokenizer_learns_from_all_parts(
    mixture: MixtureSource, parts: list[FolderSource]
) -> None:
    numbers = [int(c.split()[1]) for c in training_captions(mixture, 10)]
    assert Counter(number // 100 for number in numbers) == {0: 3, 1: 1, 2: 6}
    assert len(training_captions(parts[2], 10)) == 10


def test_broken_records_of_all_parts_are_counted(tmp_path: Path) -> None:
    sources = []
    for part in range(2):
        folder = write_images(tmp_path / str(part), 4)
        (folder / "02.png").write_bytes(b"no image")
        sources.append(open_folder(folder, "all", 0.0))
    settings = loader_config(batch_examples=8, max_bad_fraction=0.25)
    with Loader(MixtureSource(sources, (1.0, 1.0)), TOKENIZER, settings) as loader:
        for _ in range(4):
            next(loader)
        assert loader.bad_records == 2


def mixed(folders: list[Path]) -> list[str]:
    return [f"3 folder {folders[1]}", f"1 folder {folders[2]}"]


def test_flags_and_json_describe_a_mixture(folders: list[Path]) -> None:
    file = Path(__file__).parent / "helpers" / "tiny.py"
    flags = ["--data.source", "mixture", *mixed(folders)]
    _, settings = parse_config(["--config", str(file), *flags], "train.py", "Trains.")
    first, second = (Folder(str(folder)) for folder in folders[1:])
    mixture = config.Mixture((MixturePart(3.0, first), MixturePart(1.0, second)))
    assert settings.data.source == mixture == parse_source(spell_source(mixture))
    assert Config.from_json(settings.to_json()) == settings
    (part, _) = json.loads(settings.to_json())["data"]["source"]["parts"]
    assert part["source"] == {"kind": "folder", "path": first.path}
    source = open_source(settings.data, "train")
    assert isinstance(source, MixtureSource)
    assert [len(part) for part in source.parts] == [6, 19]
    assert source.weights == (3.0, 1.0)


@pytest.mark.slow
def test_training_resumes_with_a_mixture_of_shards_and_a_folder(
    train, folders: list[Path], tmp_path: Path
) -> None:
    main(["--from", str(folders[2]), "--to", str(tmp_path / "data"), "--px", "8"])
    splits = "train_split=train validation_split=validation"
    parts = (f"2 shards {tmp_path / 'data'} {splits}", f"1 folder {folders[1]} {splits}")
    flags = ("--data.source", "mixture", *parts, "--train.steps", "12")
    flags += ("--train.checkpoint-every-steps", "4", "--train.log-every-steps", "1")
    straight, resumed = (tmp_path / name for name in ("straight", "resumed"))
    said = "".join(train(straight, *flags).communicate(timeout=300))
    assert "16 images" in said  # 10 in the shards, the others held out, and 6
    process = train(resumed, *flags)
    while not (resumed / "checkpoints" / "4").is_dir() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert "resumed at step" in "".join(train(resumed, *flags).communicate(timeout=300))
    first, second = (
        {row["step"]: row["loss"] for row in map(json.loads, lines) if "loss" in row}
        for lines in (
            (run / "metrics.jsonl").read_text().splitlines() for run in (straight, resumed)
        )
    )
    assert first == second
    assert len(first) == 12
    assert spell_source(Config.load(resumed / "config.json").data.source)[0] == "mixture"


def test_each_part_has_its_own_splits(folders: list[Path]) -> None:
    full = f"1 folder {folders[0]} train_split=all validation_split=all"
    data = DataConfig(source=parse_source(["mixture", full, f"1 folder {folders[2]}"]))
    for split, sizes in (("train", [3, 19]), ("validation", [3, 1])):
        source = open_source(data, split)
        assert isinstance(source, MixtureSource)
        assert [len(part) for part in source.parts] == sizes


def test_a_pattern_applies_to_every_part(folders: list[Path]) -> None:
    mixture = parse_source(["mixture", *mixed(folders)])
    data = DataConfig(source=mixture, train_split="all", caption_pattern="5$")
    source = open_source(data, "all")
    assert isinstance(source, MixtureSource)
    assert [part.captions(0) for part in source.parts] == [("number 105",), ("number 205",)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("folder x", "begin with a weight"),
        ("0 folder x", "must be a number above 0, not 0.0"),
        ("inf folder x", "must be a number, not inf"),
        ("much folder x", "begin with a weight"),
        ("1 folder x speed=3", "unexpected 'speed=3'; give PATH"),
        ("1 images", "begin with one of scenes, tfds"),
        ("1 folder 'x", "No closing quotation"),
        ("1 folder", "data.source.path is missing"),
    ],
)
def test_an_invalid_part_is_refused_by_name(text: str, why: str) -> None:
    with pytest.raises(UserError, match=rf"^--data.source mixture .*{why}") as error:
        parse_source(["mixture", text])
    assert text.split()[0] in str(error.value)
