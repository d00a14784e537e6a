"""Initial parameters of fine-tuned models."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import model_set, tiny, tiny_prior

from glide_jax.cli import load_config, parse_command
from glide_jax.errors import UserError
from glide_jax.models.build import build_network
from glide_jax.runs.fine_tune import starting_params, with_sizes_of, with_starting_sizes
from glide_jax.runs.folder import Run
from glide_jax.train import Flags


def denoised(config, params, **conditions):
    """A model's output for fixed inputs."""
    rng = np.random.default_rng(0)
    network = build_network(config.model)
    px, length = config.model.resolution_px, config.model.text.length
    x_t = jnp.asarray(rng.standard_normal((2, px, px, 3)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, 300, (2, length)), jnp.int32)
    low_res_t = jnp.array([3, 90]) if config.model.low_res_noise else None

    @jax.jit
    def output(params):
        model = network.bind(params)
        text = model.encode_text(tokens, jnp.ones((2, length), bool), low_res_t)
        width = config.model.image_embedding_width
        if width:
            embedding = jnp.asarray(rng.standard_normal((2, width)), jnp.float32)
            text = model.add_image(text, embedding, jnp.array([True, False]))
        return model(x_t, jnp.array([5, 800]), text, model.condition(**conditions))

    return output(dict(params))


@pytest.fixture(scope="module")
def low_res():
    rng = np.random.default_rng(1)
    px = model_set.SMALL_PX
    return jnp.asarray(rng.uniform(-1, 1, (2, px, px, 3)), jnp.float32)


def known_and_mask(px):
    rng = np.random.default_rng(2)
    return {
        "known": jnp.asarray(rng.uniform(-1, 1, (2, px, px, 3)), jnp.float32),
        "mask": jnp.asarray(rng.random((2, px, px, 1)) < 0.5, jnp.float32),
    }


def test_an_inpainting_model_initially_equals_its_base_model(trained_run):
    before, after = tiny.get_config(), model_set.inpaint_config()
    params = starting_params(Run.open(trained_run), after)
    base = starting_params(Run.open(trained_run), before)
    # The sums over more channels round in another order.
    np.testing.assert_allclose(
        denoised(after, params, **known_and_mask(8)), denoised(before, base), atol=1e-5
    )


def test_a_decoder_initially_equals_its_base_model(trained_run):
    """Exactly with embeddings that are only added; nearly with tokens, which take attention."""
    before = tiny.get_config()
    base = denoised(before, starting_params(Run.open(trained_run), before))
    for tokens, error in ((0, 0), (4, 0.1)):
        model = dataclasses.replace(before.model, image_embedding_width=16, image_tokens=tokens)
        after = dataclasses.replace(before, model=model)
        found = denoised(after, starting_params(Run.open(trained_run), after))
        assert np.abs(found - base).max() <= error * np.abs(base).max(), tokens


def test_new_input_channels_are_inserted_in_order(models, low_res):
    before = model_set.upsampler_config(inpaint=False)
    after = model_set.upsampler_config(inpaint=True)
    params = starting_params(Run.open(models / "upsample"), after)
    original = starting_params(Run.open(models / "upsample"), before)
    given = known_and_mask(model_set.LARGE_PX)
    np.testing.assert_allclose(
        denoised(after, params, low_res=low_res, **given),
        denoised(before, original, low_res=low_res),
        atol=1e-5,
    )


def test_an_upsampler_can_become_conditioned_on_the_noise_level(models, low_res):
    before = model_set.upsampler_config(inpaint=False)
    model = dataclasses.replace(before.model, low_res_noise=True)
    after = dataclasses.replace(before, model=model)
    np.testing.assert_array_equal(
        denoised(after, starting_params(Run.open(models / "upsample"), after), low_res=low_res),
        denoised(before, starting_params(Run.open(models / "upsample"), before), low_res=low_res),
    )


def test_incompatible_models_are_refused(models, trained_run, tmp_path):
    base, inpaint = tiny.get_config(), model_set.inpaint_config()
    clip = model_set.clip_config()
    wider = dataclasses.replace(base.model.unet, channels=64)
    wider = dataclasses.replace(base, model=dataclasses.replace(base.model, unet=wider))
    eps = dataclasses.replace(base.diffusion, prediction="eps")
    as_upsampler = dataclasses.replace(
        inpaint, diffusion=model_set.upsampler_config(False).diffusion
    )
    for run, config, line in (
        (trained_run, wider, r"text_emb.bias is \(128,\) there and \(256,\) in the config"),
        (trained_run, clip, "one of the two models is a CLIP"),
        (models / "base-inpaint", base, "has the input known pixels and mask, this one does not"),
        (models / "upsample", as_upsampler, "has the input low_res, this one does not"),
        (trained_run, dataclasses.replace(base, diffusion=eps), "diffusion.prediction v"),
        (tmp_path, base, "is not a run folder"),
    ):
        with pytest.raises(UserError, match=line):
            starting_params(Run.open(run), config)


def test_heads_that_no_shape_shows_must_agree(trained_run):
    base = tiny.get_config()
    text = dataclasses.replace(base.model.text, heads=4)
    config = dataclasses.replace(base, model=dataclasses.replace(base.model, text=text))
    with pytest.raises(UserError, match=r"has model.text.heads 2, this run has 4: its parameters"):
        starting_params(Run.open(trained_run), config)


@pytest.fixture(scope="module")
def sizes(tmp_path_factory):
    """Run folders of small models without parameters: with a checkpoint of no arrays."""
    folder = tmp_path_factory.mktemp("sizes")
    configs = {
        "base": tiny.get_config(),
        "upsample": model_set.upsampler_config(inpaint=False),
        "clip": model_set.clip_config(),
    }
    for name, config in configs.items():
        (folder / name / "checkpoints" / "5").mkdir(parents=True)
        (folder / name / "config.json").write_text(config.to_json())
    return folder


STAGES = (
    ("scenes_base32_inpaint", "base"),
    ("scenes_upsample128_inpaint", "upsample"),
    ("base64_inpaint", "base"),
    ("upsample256_inpaint", "upsample"),
    ("base64_cfg", "base"),
    ("noised_clip", "clip"),
)


@pytest.mark.parametrize(("name", "start"), STAGES, ids=[name for name, _ in STAGES])
def test_every_stage_takes_the_sizes_of_the_run_it_starts_from(sizes, name, start):
    """As train.py --config NAME --train.init-from RUN does, whatever its vocabulary and widths."""
    argv = ["--config", name, "--train.init-from", str(sizes / start), "--train.run-dir", "none"]
    _, config, _ = parse_command(argv, "train.py", "", Flags, with_starting_sizes)
    file, run = load_config(name), Run.open(sizes / start).config
    kept = ("low_res_px", "low_res_noise", "inpaint", "dtype", "remat", "steps")
    for field in dataclasses.fields(config.model):
        ours, theirs, given = (getattr(c.model, field.name) for c in (config, run, file))
        if field.name == "unet":
            assert ours.resolution_px == given.resolution_px
            levels = ((u.resolution_px // px for px in u.attention_px) for u in (ours, theirs))
            assert [*next(levels)] == [*next(levels)]
            own = ("resolution_px", "attention_px", "dropout")
            assert theirs == dataclasses.replace(ours, **{n: getattr(theirs, n) for n in own})
        else:
            assert ours == (given if field.name in kept else theirs), field.name
    parts = ("diffusion", "data", "optim", "sample")
    assert all(getattr(config, part) == getattr(file, part) for part in parts)


def test_flags_precede_the_sizes_of_the_other_run(sizes):
    ours = ["--config", "scenes_base32_inpaint", f"--train.init-from={sizes / 'base'}"]
    given = [*ours, "--model.text.width", "64", "--train.run-dir", "none"]
    _, config, _ = parse_command(given, "train.py", "", Flags, with_starting_sizes)
    assert (config.model.text.width, config.model.text.vocab_size) == (64, 300)
    _, plain, _ = parse_command([*ours, "--train.init-from", ""], "train.py", "", Flags)
    assert plain == dataclasses.replace(
        load_config("scenes_base32_inpaint"), train=dataclasses.replace(plain.train, init_from="")
    )


def test_a_run_that_resumes_needs_no_other_run(sizes, tmp_path):
    (tmp_path / "run").symlink_to(sizes / "base")
    start = ["--train.init-from", "gone", "--train.run-dir", str(tmp_path / "run")]
    argv = ["--config", "scenes_base32", *start]
    _, config, _ = parse_command(argv, "train.py", "", Flags, with_starting_sizes)
    assert config.model.text.vocab_size == 300
    argv[-1] = str(tmp_path / "new")
    with pytest.raises(UserError, match="gone is not a folder"):
        parse_command(argv, "train.py", "", Flags, with_starting_sizes)


def test_models_of_different_kinds_have_no_sizes_in_common():
    base, clip = tiny.get_config(), model_set.clip_config()
    assert with_sizes_of(base, clip) == clip and with_sizes_of(clip, base) == base


def test_errors_name_the_run_as_it_was_given():
    config = model_set.clip_config()
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, init_from="demo/base")
    )
    with pytest.raises(UserError, match=r"^train.init_from demo/base: one of the two models"):
        starting_params(Run.open("demo/base"), config)


def test_a_clip_can_be_fine_tuned_from_a_clip(models):
    params = starting_params(Run.open(models / "clip"), model_set.clip_config())
    assert params.keys() == build_network(model_set.clip_config().model).shapes.keys()


class ZeroRun(Run):
    """A run of a configuration, whose parameters are zero."""

    def weights(self):
        shapes = self.network.shapes
        return {name: np.zeros(x.shape, np.float32) for name, x in shapes.items()}


def test_an_upsampler_starts_from_the_first_of_two_networks():
    """As from Karlo's, whose last step has a network of its own."""
    config = model_set.upsampler_config(False)
    model = dataclasses.replace(config.model, last_step_network=True)
    before = ZeroRun(Path("x"), dataclasses.replace(config, model=model))
    assert starting_params(before, config).keys() == build_network(config.model).shapes.keys()
    with pytest.raises(UserError, match=r"model\.last_step_network is for models without image"):
        dataclasses.replace(model, image_embedding_width=8)


def test_a_prior_starts_from_one_of_the_same_clip():
    ours, theirs, unknown = (
        tiny_prior.changed(tiny_prior.prior_config(), "train", clip_fingerprint=fingerprint)
        for fingerprint in ("a", "b", "")
    )
    assert starting_params(ZeroRun(Path("x"), unknown), ours)
    with pytest.raises(UserError, match=r"train\.init_from x is a prior of another CLIP"):
        starting_params(ZeroRun(Path("x"), theirs), ours)
