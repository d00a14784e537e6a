"""python -m glide_jax.evaluate on images from anywhere, and on samples of a model."""

import json
import tarfile

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from glide_jax.errors import UserError
from glide_jax.evaluate import __main__ as command
from glide_jax.evaluate import results
from glide_jax.evaluation import reference
from glide_jax.evaluation.features import FeatureExtractor
from glide_jax.evaluation.image_sets import Preparation, open_images
from glide_jax.evaluation.npz_images import write_npz
from glide_jax.evaluation.reference import CACHED
from glide_jax.evaluation.statistics_files import read_statistics
from glide_jax.evaluation.suite import Measured, compare, needs
from glide_jax.storage import cache_folder

N = 8
DIVERSITY = ("--metrics", "lpips_diversity")
KID, FD = (
    ("--images", "IMAGES", "--reference", "IMAGES", "--metrics", name) for name in ("kid", "fd")
)


@pytest.fixture
def run(efficientnet, monkeypatch, tmp_path, capsys):
    """Runs the command with the shared extractor: settings by name, and what it printed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(results, "load_extractor", lambda *_: efficientnet)
    monkeypatch.setattr(command, "use_all_cores", lambda *_: None)

    def run(*flags):
        out = tmp_path / "results.json"
        command.main([*map(str, flags), "--out", str(out)])
        values = json.loads(out.read_bytes())
        results = {result["name"]: result for result in values["results"]}
        return results, values["settings"], capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Random images as a folder of folders, a tar archive and an .npz file, and other images."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (2 * N, 24, 24, 3), np.uint8)
    for i, image in enumerate(pixels):
        folder = root / ("samples" if i < N else "others") / str(i % 2)
        folder.mkdir(parents=True, exist_ok=True)
        info = PngImagePlugin.PngInfo()
        info.add_itxt("prompt", f"caption {i}")
        Image.fromarray(image).save(folder / f"{i:02}.png", pnginfo=info)
    write_npz(root / "samples.npz", iter(pixels[:N]), N)
    with tarfile.open(root / "samples.tar", "w") as archive:
        archive.add(root / "samples", "samples")
    return root


def test_a_folder_a_tar_and_an_npz_file_give_the_same_numbers(run, images):
    found = []
    for name in ("samples", "samples.tar", "samples.npz"):
        flags = ("--images", images / name, "--reference", images / "others")
        results, settings, printed = run(*flags, "--metrics", "kid,precision_recall")
        found.append([result["value"] for result in results.values()])
        assert settings["n"] == settings["reference_n"] == str(N)
        assert settings["resize"] == "clean"
        assert len(settings["weights"]) == 64
    assert list(results) == [
        f"{name} (EfficientNet-Lite0)" for name in ("KID", "precision", "recall")
    ]
    assert all(result["standard_error"] is not None for result in results.values())
    assert "8 images of" in printed
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], atol=1e-6)
    assert "others: features from" in printed  # by content, from the first run


def test_few_images_are_warned_of_and_statistics_are_kept(
    run, images, caplog, tmp_path, monkeypatch
):
    stats = tmp_path / "stats.npz"
    flags = ("--images", images / "samples", "--metrics", "fd")
    results, _, _ = run(*flags, "--reference", images / "others", "--save-statistics", stats)
    assert f"{N} samples for 1,280 dimensions, so the covariance is singular" in caplog.text
    assert results["FD (EfficientNet-Lite0)"]["value"] > 0
    assert read_statistics(stats).settings["network"] == "efficientnet-lite0"
    prepared = ("--images", images / "samples", "--metrics", "kid", "--px", 16)
    for _ in range(2):  # computed, then cached
        run(*prepared, "--reference", images / "others")
    _, known = reference.open_reference([stats], "", Preparation(), None, "efficientnet-lite0")
    assert known.n == N
    # What does not fit is refused before the samples are measured.
    monkeypatch.setattr("glide_jax.evaluate.results.measure", None)
    with pytest.raises(UserError, match="kid needs reference images: the reference has"):
        run("--images", images / "samples", "--metrics", "kid", "--reference", stats)
    cropped = (*flags, "--reference", stats, "--px", 16)
    with pytest.raises(UserError, match="px is 16 for the samples and not set for the reference"):
        run(*cropped)


class Levels(FeatureExtractor):
    """An extractor whose features are the first two levels."""

    settings = {"network": "levels"}  # noqa: RUF012

    def __init__(self):
        pass

    def stream(self, batches):
        for batch in batches:
            yield {"pool": batch.reshape(len(batch), -1)[:, :2].astype(np.float32)}


def test_the_cache_grows_with_what_is_asked(images, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    others = open_images([images / "others"])
    for wanted, computed in (("features", True), ("statistics", True), ("features", False)):
        found = reference.measured_reference(others, Measured(), Levels(), {wanted})
        assert getattr(found, wanted) is not None
        assert ("features from" not in capsys.readouterr().out) == computed
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")  # where nothing can be written
    assert reference.measured_reference(others, Measured(), Levels(), {"features"}).n == N
    assert "cannot cache /dev/null" in capsys.readouterr().out


def test_of_a_reference_only_what_is_compared_is_measured():
    assert needs(["is", "fid", "kid"], of_reference=True) == {"statistics", "features"}
    assert needs(["is"], of_reference=True) == set()


def test_features_of_other_settings_do_not_compare():
    x = np.zeros((4, 2), np.float32)
    settings = {"network": "inception", "weights": "", "resize": "tf1"}
    sets = [Measured(features=x, settings=settings | {"resize": r}) for r in ("tf1", "clean")]
    with pytest.raises(UserError, match="resize is tf1 for the samples and clean for the"):
        compare(["kid"], *sets, "Inception")


def test_the_cache_follows_the_contents(run, images, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (24, 24), (60 * i, 0, 0)).save(folder / f"{i}.png")
    flags = ("--images", images / "samples.npz", "--n", 4, "--metrics", "kid")
    first, _, _ = run(*flags, "--reference", folder)
    Image.new("RGB", (24, 24), "blue").save(folder / "0.png")
    second, _, printed = run(*flags, "--reference", folder)
    assert "features from" not in printed
    assert first != second
    for file in (cache_folder() / CACHED).iterdir():
        file.write_bytes(file.read_bytes()[:100])  # damaged files are made again
    assert run(*flags, "--reference", folder)[0] == second


def test_a_reference_is_opened_before_samples_are_made(run, images, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "sample_images", None)
    np.savez(tmp_path / "stats.npz", mu=np.zeros(3), sigma=np.eye(3))
    stats = tmp_path / "stats.npz"
    for words, why in (
        (["none"], "none: not found: give a folder, a .tar"),
        ([stats], "kid needs reference images"),
        ([stats, "--reference-n", 2], "stats.npz has statistics only: --reference-n needs images"),
    ):
        with pytest.raises(UserError, match=why):
            run("--checkpoint", "x", "--reference", *words, "--metrics", "kid")


def test_captions_are_read_before_features(run, images, monkeypatch):
    class NoCaptions:
        names, settings = ("clip_score",), {}

        def __call__(self, images):
            raise UserError("0.png has no caption")

    monkeypatch.setattr(results.CaptionMetrics, "load", lambda *_: NoCaptions())
    monkeypatch.setattr(results, "measure", None)
    flags = ("--images", images / "samples", "--reference", images / "samples")
    with pytest.raises(UserError, match="no caption"):
        run(*flags, "--metrics", "kid,clip_score", "--clip", "x")


def test_npz_files_are_written_for_other_evaluators(run, images, tmp_path):
    path = tmp_path / "new.npz"
    run(
        *("--images", images / "samples", "--reference", images / "others"),
        *("--metrics", "kid", "--save-npz", path),
    )
    with np.load(path) as new, np.load(images / "samples.npz") as old:
        assert new["arr_0"].shape == old["arr_0"].shape
        np.testing.assert_array_equal(np.sort(new["arr_0"], 0), np.sort(old["arr_0"], 0))


def test_samples_of_a_model(run, models, capsys):
    flags = ("--checkpoint", models / "base", "--n", 4, "--metrics", "kid")
    _, settings, printed = run(*flags)
    assert "4 of 4 images left to sample" in printed
    assert settings["px"] == "8"
    assert settings["sample.sampler"] == "ddim"
    log = models / "base" / "evaluations.jsonl"
    assert str(log) in printed
    seeds = [
        Image.open(file).text["seed"]
        for file in sorted((models / "base" / "samples" / "evaluation-base-4").iterdir())
    ]
    assert seeds == ["0", "1", "2", "3"]
    _, again, printed = run(*flags)
    assert "0 of 4 images left to sample" in printed
    assert again == settings
    assert len(log.read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--metrics", "kid"), "give either --images or --checkpoint"),
        (("--images", "IMAGES", "--metrics", "kid"), "kid: give --reference"),
        (("--images", "IMAGES", "--metrics", "fid"), "it is called fd"),
        (("--images", "IMAGES", "--metrics", "kdi"), "unknown metric 'kdi': did you mean kid?"),
        (("--images", "IMAGES", "--metrics", "recall"), "'recall': did you mean precision_recall?"),
        (("--images", "IMAGES", "--metrics", "bleu"), "unknown metric 'bleu': choose from fd, fid"),
        ((*KID, "--implementation", "clean-fid", "--n", 9), "--n 9: kid of --implementation clean"),
        (("--images", "IMAGES", "--network", "vgg"), "--network vgg: choose one of efficientnet"),
        (("--images", "IMAGES", "--crop", "x"), "--crop x: choose one of adm, edm2"),
        (("--images", "IMAGES", "--crop", "squeeze"), "--crop squeeze: give --px too"),
        (("--checkpoint", "x", *DIVERSITY, "--lpips", "x"), "but --checkpoint samples one of each"),
        ((*KID, "--save-statistics", "x.npz"), "--save-statistics: add fd or fid to --metrics"),
        ((*FD, "--save-statistics", "x.pkl"), "EDM2's format has no name for efficientnet"),
        (("--images", "IMAGES", "--metrics", "clip_score"), "clip_score needs --clip"),
        (
            ("--images", "NONE", *["--reference", "IMAGES", "--metrics", "kid"]),
            "give a folder, a .tar",
        ),
        (("--images", "IMAGES", "--reference", "scenes"), "scenes full: give --px"),
    ],
)
def test_flags_that_do_not_fit_are_refused(run, images, flags, why):
    flags = [str(images / "samples") if flag == "IMAGES" else flag for flag in flags]
    with pytest.raises(UserError) as error:
        run(*flags)
    assert why in str(error.value)
    assert "\n" not in str(error.value)


def test_images_that_fit_no_npz_file_are_refused_before_the_evaluation(run, tmp_path, monkeypatch):
    for side in (24, 25):
        Image.new("RGB", (side, side)).save(tmp_path / f"{side}.png")
    monkeypatch.setattr(results.Evaluator, "results", None)
    flags = ("--images", tmp_path, "--reference", tmp_path, "--metrics", "kid")
    with pytest.raises(UserError, match=r"an \.npz file needs one size; give --px"):
        run(*flags, "--save-npz", tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()


def bad_npz(path, kind):
    """An .npz file with images that are not, or not all there."""
    arrays = {
        "floats": np.zeros((3, 8, 8, 3), np.float32),
        "gray": np.zeros((3, 8, 8), np.uint8),
        "none": np.zeros((0, 8, 8, 3), np.uint8),
    }
    if kind == "no array":
        np.savez(path, x=np.zeros(3))
    elif kind == "truncated":
        np.savez(path, arr_0=np.zeros((3, 8, 8, 3), np.uint8))
        path.write_bytes(path.read_bytes()[:-300])
    else:
        np.savez(path, arr_0=arrays[kind])


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("floats", "arr_0 is float32 of shape (3, 8, 8, 3): images must be uint8 levels 0..255"),
        ("gray", "arr_0 is uint8 of shape (3, 8, 8)"),
        ("none", "no images"),
        ("no array", "has no images: it has no array arr_0"),
        ("truncated", "is not a valid .npz file"),
    ],
)
def test_bad_npz_files_are_refused(run, images, tmp_path, kind, why):
    path = tmp_path / "bad.npz"
    bad_npz(path, kind)
    with pytest.raises(UserError) as error:
        run("--images", path, "--reference", images / "others", "--metrics", "kid")
    assert str(error.value).startswith(str(path))
    assert why in str(error.value)


def test_bad_images_are_named(run, images, tmp_path, caplog):
    folder = tmp_path / "some"
    folder.mkdir()
    with pytest.raises(UserError, match="some: no images"):
        run("--images", folder, "--reference", images / "others", "--metrics", "kid")
    for i in range(4):
        Image.new("RGB", (24, 24), (60 * i, 0, 0)).save(folder / f"{i}.png")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:50])
    _, settings, _ = run("--images", folder, "--reference", images / "others", "--metrics", "kid")
    assert settings["n"] == "3"
    assert "skipped an image: 2.png: " in caplog.text
    (folder / "3.png").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"some: 2 of 4 images cannot be read: 2.png: .*; 3.png: the file"
    ):
        run("--images", folder, "--reference", images / "others", "--metrics", "kid")


def test_statistics_of_a_reference_alone(run, images, tmp_path):
    path = tmp_path / "photos.npz"
    command.main(["--reference", str(images / "others"), "--save-statistics", str(path)])
    assert read_statistics(path).n == N


def test_a_set_compared_with_itself_is_warned_of(run, images, caplog):
    place = images / "samples"
    run("--images", place, "--reference", place, "--metrics", "kid")
    assert "--images and --reference are both" in caplog.text
