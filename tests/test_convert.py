"""Conversion of released weights to run folders and back, bit for bit; refusals of other files."""

import dataclasses
import pickle
import runpy
import sys
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from helpers.golden_models import (
    UNETS,
    config_of,
    golden_clip_config,
    golden_clip_files,
    golden_weights,
)

from glide_jax.config import Unknown
from glide_jax.convert import __main__
from glide_jax.convert.__main__ import main
from glide_jax.convert.models import LOGIT_SCALE
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.tokenizers.clip_bpe import ClipTokenizer
from glide_jax.errors import UserError
from glide_jax.parallel.sharding import make_mesh
from glide_jax.pretrained.names import (
    from_original,
)
from glide_jax.pretrained.weight_files import read_tensors, write_tensors
from glide_jax.runs.checkpoint import Checkpoints
from glide_jax.runs.folder import Run
from glide_jax.training.denoising import Denoising
from glide_jax.training.step import Trainer

SMALL = ("--head-width", "32", "--text-heads", "2", "--image-heads", "3", "--dtype", "float32",
         "--base-px", "4", "--upsample-px", "16")  # fmt: skip
"""Settings of the golden models that their tensors do not determine."""


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Flags for tokenizers of the smallest sizes."""
    folder = tmp_path_factory.mktemp("tokenizers")
    Tokenizer.train([], 257).save(folder / "glide")
    ClipTokenizer.train([], 514).save(folder / "clip")
    return ("--tokenizer", str(folder / "glide"), "--clip-tokenizer", str(folder / "clip"))


def widened(weights, name, rows):
    """More rows for an embedding: the golden models have fewer tokens than there are bytes."""
    table = weights[name]
    more = np.random.default_rng(0).normal(size=(rows - len(table), table.shape[1]))
    return weights | {name: np.concatenate([table, more.astype(np.float32)])}


@pytest.fixture(scope="module")
def originals():
    """Weights of the golden models under the original's names, by file."""
    files = {}
    for name in UNETS:
        _, weights, _ = golden_weights(f"unet_{name}.npz")
        files[name] = widened(weights, "token_embedding.weight", 257)
    text, image = golden_clip_files()
    return files | {
        "clip_text_enc": widened(text, "blocks.input.w_voc", 514),
        "clip_image_enc": image,
    }


@pytest.fixture(scope="module")
def released_set(originals, tokenizers, tmp_path_factory):
    """The run folders of all six files, converted in one call."""
    folder = tmp_path_factory.mktemp("set")
    files = [folder / f"{name}.{kind}" for name, kind in zip(
        originals, ("npz", "safetensors") * 3, strict=True)]  # fmt: skip
    for file in files:
        write_tensors(file, originals[file.stem])
    main([*map(str, files), "--to", str(folder / "runs"), *tokenizers, *SMALL])
    return folder / "runs"


def test_a_set_of_files_becomes_run_folders(released_set):
    folders = sorted(path.name for path in released_set.iterdir())
    assert folders == ["base", "base-inpaint", "clip", "upsample", "upsample-inpaint"]
    configs = {name: Run.open(released_set / name).config for name in folders}
    for name in UNETS:
        meta, _, arrays = golden_weights(f"unet_{name}.npz")
        model = configs[name.replace("_", "-")].model
        px = 16 if "low_res" in arrays else 4
        expected = config_of(meta | {"image": px}, 4 if px == 16 else 0, "inpaint_mask" in arrays)
        text = dataclasses.replace(expected.text, vocab_size=257)  # see `widened`
        assert model == dataclasses.replace(expected, text=text)
    assert {config.data.source for config in configs.values()} == {Unknown()}
    sampling = {
        name: (c.diffusion.schedule, c.sample.sampler, c.sample.steps, c.sample.guidance_scale)
        for name, c in configs.items()
        if name != "clip"
    }
    assert sampling == {
        "base": ("squaredcos_cap_v2", "ddpm", "100", 3.0),
        "base-inpaint": ("squaredcos_cap_v2", "ddpm", "100", 5.0),
        "upsample": ("linear", "ddim", "fast27", 1.0),
        "upsample-inpaint": ("linear", "ddpm", "fast27", 1.0),
    }
    assert configs["clip"].model.image == golden_clip_config().image
    assert configs["clip"].model.embedding_width == 32
    assert Tokenizer.load(released_set / "base" / "tokenizer").vocab_size == 257
    assert ClipTokenizer.load(released_set / "clip" / "tokenizer").vocab_size == 514


def test_converted_parameters_equal_the_originals(released_set, originals):
    network = Run.open(released_set / "base").network
    params = Checkpoints(released_set / "base").restore_ema(network.shapes)
    expected = from_original(originals["base"], network.shapes)
    for name, value in params.items():
        np.testing.assert_array_equal(value, expected[name])
    network = Run.open(released_set / "clip").network
    scale = Checkpoints(released_set / "clip").restore_ema(network.shapes)["logit_scale"]
    np.testing.assert_allclose(scale, LOGIT_SCALE)


def test_training_does_not_resume_from_weights_alone(released_set):
    config = Run.open(released_set / "base").config
    trainer = Trainer(config, Denoising(config), make_mesh(config))
    with pytest.raises(UserError, match="holds only weights"):
        checkpoints = Checkpoints(released_set / "base", max_checkpoints=1)
        checkpoints.restore(trainer.abstract_state, trainer.state_shardings)


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pt"])
def test_the_round_trip_is_bit_exact(released_set, originals, tmp_path, suffix, capsys):
    for name in ("upsample_inpaint", "clip"):
        main(
            [str(released_set / name.replace("_", "-")), "--to", str(tmp_path / f"{name}.{suffix}")]
        )
    printed = capsys.readouterr().out
    assert "2 text heads, heads of 32 channels, 16 px, linear schedule" in printed
    assert "logit_scale 100, 2 text heads, 3 image heads" in printed
    for name in ("upsample_inpaint", "clip_text_enc", "clip_image_enc"):
        back = read_tensors(tmp_path / f"{name}.{suffix}")
        assert back.keys() == originals[name].keys()
        for key, value in back.items():
            np.testing.assert_array_equal(value, originals[name][key], err_msg=key)
            assert value.dtype == np.float32


def refused(*arguments):
    with pytest.raises(UserError) as error:
        main([*map(str, arguments)])
    line = str(error.value)
    assert "\n" not in line
    return line


def test_tensors_that_do_not_fit_are_refused_by_name(originals, tokenizers, tmp_path):
    weights = originals["base"]
    file = tmp_path / "x.npz"

    def convert(changed):
        write_tensors(file, changed)
        return refused(file, "--to", tmp_path / "runs", *tokenizers, *SMALL)

    without = {name: x for name, x in weights.items() if name != "final_ln.bias"}
    assert convert(without) == f"{file}: the weights lack final_ln.bias (1 tensors missing)"
    more = weights | {"label_emb.weight": np.zeros((2, 3), np.float32)}
    assert convert(more) == (f"{file}: unexpected tensor label_emb.weight (1 tensors are not used)")
    name = "middle_block.1.encoder_kv.weight"
    wrong = weights | {name: np.zeros((128, 32, 3), np.float32)}
    assert convert(wrong) == (f"{file}: {name} has shape (128, 32, 3), but (128, 32, 1) is needed")
    channels = weights | {"input_blocks.0.0.weight": np.zeros((32, 5, 3, 3), np.float32)}
    assert "input_blocks.0.0.weight has 5 input channels" in convert(channels)
    for name in (
        "time_embed.0.weight",
        "positional_embedding",
        "input_blocks.1.0.out_layers.3.weight",
    ):
        assert f"{name} has shape (4,)" in convert(weights | {name: np.zeros(4, np.float32)})
    integers = weights | {"out.0.bias": np.zeros(32, np.int64)}
    assert convert(integers) == f"{file}: out.0.bias is of type int64, not floating-point"
    assert convert({"x": np.zeros(3, np.float32)}).startswith(f"{file}: neither a GLIDE model")
    assert not (tmp_path / "runs").exists()


def test_refusals_are_one_line(originals, released_set, tokenizers, tmp_path):
    base, text = tmp_path / "base.npz", tmp_path / "text.safetensors"
    write_tensors(base, originals["base"])
    write_tensors(text, originals["clip_text_enc"])
    flags = ("--to", tmp_path / "runs", *tokenizers, *SMALL)
    assert refused(base, *flags, "--head-width", "48") == (
        f"{base}: config: model.unet.head_width (48) must divide the width of every attention "
        "layer, but one is 64 (--help lists the settings that files do not store)"
    )
    assert refused(text, *flags) == f"{text} is a part of a clip: clip image is missing"
    assert "are both clip text models" in refused(text, text, *flags)
    assert refused(tmp_path / "no.npz", *flags) == f"{tmp_path / 'no.npz'}: no such file"
    assert "must end in .pt, .pth, .bin, .safetensors, .npz" in refused(
        tmp_path / "base.txt", *flags
    )
    assert "files are converted to a folder" in refused(base, "--to", tmp_path / "x.pt")
    assert "must end in" in refused(released_set / "base", "--to", tmp_path / "base")
    assert "converted one by one" in refused(
        released_set / "base", base, "--to", tmp_path / "y.npz"
    )
    assert "is not a run folder" in refused(tmp_path, "--to", tmp_path / "y.npz")
    assert "already exists" in refused(released_set / "base", "--to", base)
    assert "already exists" in refused(base, "--to", released_set, *flags[2:])
    no_tokenizer = refused(base, "--to", tmp_path / "runs", "--tokenizer", "./nowhere", *SMALL)
    assert no_tokenizer.endswith(
        "no such folder: ./nowhere; name another folder or hub name with --tokenizer"
    )
    assert not (tmp_path / "runs").exists()


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


def test_broken_files_are_refused(tmp_path):
    whole = tmp_path / "whole.npz"
    write_tensors(whole, {"a": np.zeros(1000, np.float32)})
    files = {
        "cut.npz": whole.read_bytes()[:2000],
        "cut.safetensors": safetensors.numpy.save({"a": np.zeros(1000, np.float32)})[:2000],
        "text.npz": b"hello",
        "empty.npz": b"",
        "text.safetensors": b"hello",
        "empty.safetensors": b"",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        line = refused(tmp_path / name, "--to", tmp_path / "runs")
        assert line.startswith(
            f"{tmp_path / name} is not a valid {(tmp_path / name).suffix} file"
        ), line
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    assert "contains one array" in refused(tmp_path / "one.npz", "--to", tmp_path / "runs")
    np.savez(tmp_path / "bomb.npz", a=np.array([Bomb(tmp_path / "ran")], object))
    assert "cannot be loaded when" in refused(tmp_path / "bomb.npz", "--to", tmp_path / "runs")
    assert not (tmp_path / "ran").exists()


def test_only_tensors_are_read_from_pt_files(tmp_path):
    file = tmp_path / "bomb.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"bomb": Bomb(tmp_path / "ran")}, 2))
    line = refused(file, "--to", tmp_path / "runs")
    assert line.startswith(f"{file} is refused: it contains ")
    assert "io.open, not only arrays" in line
    assert not (tmp_path / "ran").exists()


def test_the_command_ends_with_one_line(tmp_path, monkeypatch, capsys):
    file = tmp_path / "base.npz"
    file.write_bytes(b"hello")
    monkeypatch.setattr(sys, "argv", ["convert", str(file), "--to", str(tmp_path / "runs")])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(__main__.__file__, run_name="__main__")
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {file} is not a valid .npz file of tensors")
    assert len(error.splitlines()) == 1
