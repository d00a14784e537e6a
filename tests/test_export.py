"""Exported weights replace the run that they come from."""

import configparser
import dataclasses
import os
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from conftest import ROOT
from helpers import tiny
from helpers.model_set import CAPTIONS, clip_config, upsampler_config, write_random_run

from glide_jax import Glide, UnCLIP, UserError, sample
from glide_jax.config import Config, Folder, Mixture, MixturePart, Scenes, Shards
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.tokenizers.clip_bpe import ClipTokenizer
from glide_jax.export.__main__ import main
from glide_jax.export.card import model_card
from glide_jax.export.publish import _portable, export
from glide_jax.runs.checkpoint import Checkpoints
from glide_jax.runs.folder import Run
from glide_jax.runs.paths import DEMO, MODEL_CARD, TOKENIZER, WEIGHTS, resolve_run
from glide_jax.sampling.clip import ClipScorer
from glide_jax.sampling.settings import changed_settings
from glide_jax.sampling.stage import Stage

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of a base model, an upsampler and a CLIP."""
    folder = tmp_path_factory.mktemp("runs")
    tokenizer = Tokenizer.train(CAPTIONS, 300)
    write_random_run(folder / "base", tiny.get_config(), tokenizer)
    write_random_run(folder / "upsample", upsampler_config(inpaint=False), tokenizer)
    write_random_run(folder / "clip", clip_config(), ClipTokenizer.train(CAPTIONS, 600))
    return folder


@pytest.fixture
def exported(runs, tmp_path):
    """The base model, exported in float32; each test may damage its own copy."""
    export(runs / "base", tmp_path / "exported", "float32")
    return tmp_path / "exported"


def shapes(run):
    return Run.open(run).network.shapes


def rounded(params, dtype):
    return {
        name: np.asarray(x).astype(jnp.dtype(dtype)).astype(np.float32)
        for name, x in params.items()
    }


def samples(stage):
    settings = changed_settings(stage.config.sample, steps=3)
    return stage.sample(["all red", "all blue"], [1, 2], settings)


def test_the_folder_holds_only_configuration_tokenizer_and_weights(runs, exported, capsys):
    files = {path.relative_to(exported).as_posix() for path in exported.rglob("*")}
    tokenizer = {f"tokenizer/{path.name}" for path in (runs / "base" / TOKENIZER).iterdir()}
    assert files == {"config.json", WEIGHTS, TOKENIZER, MODEL_CARD} | tokenizer
    assert not list(exported.parent.glob(".*"))
    assert (exported / WEIGHTS).stat().st_mode == (exported / "config.json").stat().st_mode
    with safetensors.safe_open(exported / WEIGHTS, "numpy") as file:
        assert file.metadata() == {"step": "0", "dtype": "float32"}
        assert set(file.keys()) == set(shapes(runs / "base"))
    main([str(runs / "clip"), "--to", str(exported.parent / "new" / "clip")])
    assert "parameters of step 0" in capsys.readouterr().out
    assert (exported.parent / "new" / "clip" / WEIGHTS).is_file()


def test_a_model_card_states_data_and_license(runs, tmp_path):
    main([str(runs / "clip"), "--to", str(tmp_path / "my clip"), "--license", "CC-BY-4.0"])
    card = (tmp_path / "my clip" / MODEL_CARD).read_text()
    assert card.startswith("# my clip\n")
    assert "| License | CC-BY-4.0 |\n" in card and "Training |" not in card
    config = tiny.get_config()
    train = dataclasses.replace(config.train, init_from="a|b\nc")
    config = dataclasses.replace(config, train=train)
    card = model_card("x", config, 1200, 34567, "bfloat16", "")
    assert "| Model | base, 8 px, 34,567 parameters, stored in bfloat16 |\n" in card
    assert "| Training | 1,200 steps of 8 images |\n| Data | `scenes" in card
    assert "| Started from | `a\\|b c` |\n| License | not stated: give `--license`" in card


def test_hidden_files_are_not_published(runs, tmp_path):
    shutil.copytree(runs / "base", tmp_path / "run")
    (tmp_path / "run" / TOKENIZER / ".tokenizer.json.123").write_text("{")
    (tmp_path / "run" / TOKENIZER / ".hidden").mkdir()
    export(tmp_path / "run", tmp_path / "exported")
    names = {path.name for path in (tmp_path / "exported" / TOKENIZER).iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_exported_model_generates_the_same_images(runs, tmp_path, dtype):
    export(runs / "base", tmp_path / "base", dtype)
    run, loaded = Stage.load(Run.open(runs / "base")), Stage.load(Run.open(tmp_path / "base"))
    expected = rounded(run.params, dtype)
    for name, value in expected.items():
        assert loaded.params[name].dtype == jnp.float32
        np.testing.assert_array_equal(loaded.params[name], value)
    run.use(expected)
    np.testing.assert_array_equal(samples(loaded), samples(run))
    size = (tmp_path / "base" / WEIGHTS).stat().st_size
    numbers = sum(value.size for value in expected.values())
    header = 120 * len(expected)  # name, type, shape and place of each tensor, in JSON
    assert numbers * jnp.dtype(dtype).itemsize < size < numbers * jnp.dtype(dtype).itemsize + header


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_exported_clip_gives_the_same_scores(runs, tmp_path, dtype):
    export(runs / "clip", tmp_path / "clip", dtype)
    run, loaded = (
        ClipScorer.load(Run.open(runs / "clip")),
        ClipScorer.load(Run.open(tmp_path / "clip")),
    )
    run.params = jax.device_put(rounded(run.params, dtype), run.params["logit_scale"].sharding)
    np.testing.assert_array_equal(loaded.scores(IMAGES, CAPTIONS), run.scores(IMAGES, CAPTIONS))


def test_parameters_beyond_the_range_of_a_dtype_are_refused(runs, tmp_path):
    shutil.copytree(runs / "base", tmp_path / "run")
    params = Run.open(tmp_path / "run").weights()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    Run.create(tmp_path / "run", tiny.get_config(), Tokenizer.train(CAPTIONS, 300))
    checkpoints = Checkpoints(tmp_path / "run", max_checkpoints=1)
    checkpoints.save_ema(params | {"unet.conv_in.bias": params["unet.conv_in.bias"] + 1e5})
    checkpoints.close()
    with pytest.raises(UserError, match=r"unet\.conv_in\.bias has values beyond the range"):
        export(tmp_path / "run", tmp_path / "half", "float16")
    assert not (tmp_path / "half").exists()
    export(tmp_path / "run", tmp_path / "brain", "bfloat16")


def test_private_paths_are_not_published(runs, tmp_path):
    shutil.copytree(runs / "base", tmp_path / "run")
    config = tiny.get_config()
    data = dataclasses.replace(
        config.data,
        source=Mixture(
            (
                MixturePart(1.0, Folder("/home/me/cats")),
                MixturePart(2.0, Scenes(data_dir="/home/me/tfds")),
                MixturePart(1.0, Shards("gs://bucket/dogs", "/home/me/cache")),
            )
        ),
        tokenizer="/home/me/words",
    )
    train = dataclasses.replace(
        config.train, run_dir="/home/me/run", init_from="/home/me/start", clip_run="demo/clip"
    )
    config = dataclasses.replace(config, data=data, train=train)
    (tmp_path / "run" / "config.json").write_text(config.to_json())
    export(tmp_path / "run", tmp_path / "exported")
    found = Run.open(tmp_path / "exported").config
    assert "/home/me" not in found.to_json()
    assert [part.source for part in found.data.source.parts] == [
        Folder("cats"), Scenes(), Shards("dogs")
    ]  # fmt: skip
    assert found.data.tokenizer == "words"
    assert (found.train.init_from, found.train.clip_run) == ("start", "demo/clip")
    assert (found.model, found.diffusion, found.sample) == (
        config.model, config.diffusion, config.sample
    )  # fmt: skip


def test_a_path_without_a_name_is_published():
    config = tiny.get_config()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=Folder("/")))
    assert _portable(config).data.source == Folder("/")


def test_unusable_runs_and_targets_are_refused(runs, exported, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    shutil.copytree(runs / "base", tmp_path / "no_tokenizer")
    shutil.rmtree(tmp_path / "no_tokenizer" / TOKENIZER)
    shutil.copytree(runs / "base", tmp_path / "odd_tokenizer")
    (tmp_path / "odd_tokenizer" / TOKENIZER / "folder").mkdir()
    for message, run, to in (
        ("already exists", runs / "base", exported),
        ("is not a folder", tmp_path / "nothing", tmp_path / "x"),
        ("is not a run folder", tmp_path / "empty", tmp_path / "x"),
        ("contains run folders: give one of exported, no_", tmp_path, tmp_path / "x"),
        ("has no checkpoints/", exported, tmp_path / "x"),
        ("has no tokenizer/", tmp_path / "no_tokenizer", tmp_path / "x"),
        ("cannot read .*tokenizer: ", tmp_path / "odd_tokenizer", tmp_path / "x"),
        ("cannot write .*file/x", runs / "base", tmp_path / "file" / "x"),
    ):
        with pytest.raises(UserError, match=message):
            export(run, to)
    assert not (tmp_path / "x").exists() and not list(tmp_path.glob(".*"))


def damage(folder, change):
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / WEIGHTS)


def test_weights_that_do_not_match_the_config_are_refused_by_name(exported):
    bias, (width,) = "unet.conv_in.bias", shapes(exported)["unet.conv_in.bias"].shape
    for message, change in (
        (rf"{bias} is absent there and \({width},\)", lambda t: t.pop(bias)),
        (rf"{bias} is \(3,\) there", lambda t: t.update({bias: np.zeros(3, np.float32)})),
        (r"conv_in\.more is \(2,\) there and absent in the config",
         lambda t: t.update({bias: np.zeros(width, np.float32),
                             "conv_in.more": np.zeros(2, np.float32)})),
        ("a_count is of type int64", lambda t: t.update(a_count=np.arange(3))),
    ):  # fmt: skip
        damage(exported, change)
        with pytest.raises(UserError, match=message) as refused:
            Stage.load(Run.open(exported))
        assert str(exported / WEIGHTS) in str(refused.value)


def test_a_truncated_weight_file_is_refused(exported):
    content = (exported / WEIGHTS).read_bytes()
    for length in (0, 5, len(content) // 2, len(content) - 1):
        (exported / WEIGHTS).write_bytes(content[:length])
        with pytest.raises(UserError, match=r"weights\.safetensors is not a valid"):
            Stage.load(Run.open(exported))
    (exported / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"needs config\.json and checkpoints/ or weights"):
        Stage.load(Run.open(exported))


def test_training_does_not_resume_in_an_exported_folder(exported):
    before = (exported / "config.json").read_text()
    with pytest.raises(UserError, match=r"another --train\.run-dir, and --train\.init-from .*exp"):
        Run.create(exported, Config(), Tokenizer.train(CAPTIONS, 300))
    assert (exported / "config.json").read_text() == before
    assert not (exported / "checkpoints").exists()


# Models shipped with the package ------------------------------------------------------------------


def folders(glide):
    return {role: run.path for role, run in glide.runs.items()}


@pytest.fixture
def demo(runs, tmp_path, monkeypatch):
    """An installation with a base model and an upsampler, each with its model card."""
    folder = tmp_path / "installed" / "demo"
    monkeypatch.setattr("glide_jax.runs.paths.DEMO", folder)
    for role in ("base", "upsample"):
        export(runs / role, folder / role)
        (folder / role / "MODEL_CARD.md").write_text("# Origin\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def test_shipped_models_are_found_by_name(demo, runs, monkeypatch):
    assert folders(Glide.load("demo")) == {"base": demo / "base", "upsample": demo / "upsample"}
    several = Glide.load("demo/base", runs / "clip")
    assert folders(several) == {"base": demo / "base", "clip": runs / "clip"}
    assert Run.open("demo/upsample").config.denoiser.low_res_px == 8
    assert Stage.load(Run.open("./demo/base")).config == Run.open(demo / "base").config
    monkeypatch.setattr(
        sys, "argv", ["sample.py", "--checkpoint", "demo", "--prompt", "all red", "--steps", "2"]
    )
    sample.main()
    assert os.path.exists("samples.png")
    for name in ("demo/clip", "demo/base/tokenizer", "demo/.."):
        with pytest.raises(UserError, match=r"those are demo/base, demo/upsample"):
            resolve_run(name)


def test_a_local_folder_takes_precedence_over_a_shipped_model(demo, runs, tmp_path):
    shutil.copytree(runs / "clip", tmp_path / "elsewhere" / "demo" / "base")
    assert set(Glide.load("demo").runs) == {"clip"}
    assert resolve_run("demo/upsample") == demo / "upsample"


def test_an_installation_without_models_is_named_in_the_error(tmp_path, monkeypatch):
    monkeypatch.setattr("glide_jax.runs.paths.DEMO", tmp_path / "demo")
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "demo/base"):
        with pytest.raises(UserError, match=f"{name}: no models are shipped with this installa"):
            Glide.load(name)
    with pytest.raises(UserError, match="other is not a folder"):
        Glide.load("other")


def test_all_files_of_a_shipped_model_are_packaged(demo):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.package_data"]["glide_jax"].split()
    packaged = {path for pattern in patterns for path in demo.parent.glob(pattern)}
    assert {path for path in demo.rglob("*") if path.is_file()} <= packaged


def test_the_shipped_models_are_complete_and_small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    glide, unclip = Glide.load("demo"), UnCLIP.load("demo")
    assert set(glide.runs) == set(Glide.roles)
    assert {"clip", "prior", "decoder", "upsample"} == set(unclip.runs)
    for run in (glide.runs | unclip.runs).values():
        assert run.weights().keys() == run.network.shapes.keys()
        card = (run.path / "MODEL_CARD.md").read_text()
        assert card.startswith("# ") and "| License | MIT |" in card
    sizes = [path.stat().st_size for path in DEMO.rglob("*") if path.is_file()]
    assert sum(sizes) < 46e6  # 12.4 MB of it for unCLIP, whose decoder is a base model and more
