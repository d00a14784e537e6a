import dataclasses
import gc
import re
import weakref

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.model_set import CAPTIONS, clip_config, write_random_run
from jax.sharding import PartitionSpec
from PIL import Image

from glide_jax import Glide, UserError
from glide_jax.data.tokenizers.clip_bpe import ClipTokenizer
from glide_jax.parallel import sharding
from glide_jax.runs.folder import Run
from glide_jax.sampling.chunks import Values, chunks
from glide_jax.sampling.conditions import Conditions
from glide_jax.sampling.programs import Inputs
from glide_jax.sampling.settings import changed_settings
from glide_jax.sampling.stage import Stage
from glide_jax.sampling.user_images import square_image, square_known


@pytest.fixture(scope="module")
def glide(trained_run):
    return Glide.load(trained_run)


def generate(glide, prompts, **options):
    return glide.generate(prompts, **({"steps": 4, "batch_size": 4} | options)).images


def test_an_image_does_not_depend_on_its_batch(glide):
    prompts = ["all red", "all green", "", "all white", "all pink"]
    together = generate(glide, prompts, seed=[1, 2, 3, 4, 5])
    assert together.shape == (5, 8, 8, 3) and together.dtype == np.uint8
    for i in (0, 4):
        alone = generate(glide, [prompts[i]], seed=i + 1)
        # Other batch sizes may sum in another order: a rounding step of 8 bits at most.
        assert np.abs(alone[0].astype(int) - together[i]).max() <= 1


def test_one_program_serves_other_prompts_seeds_and_scales(glide):
    generate(glide, ["all red"] * 4, batch_size=4, sampler="ddpm")
    program = glide.stage("base").programs.advance
    compiled = program._cache_size()
    generate(glide, ["all blue", "", "x", "y"], sampler="ddpm", seed=9)
    generate(glide, ["z"], guidance_scale=7.5, negative_prompt="all red", sampler="ddpm")
    generate(glide, ["z"], sampler="ddpm", steps=3, temperature=0.9, guidance_rescale=0.7)
    assert program._cache_size() == compiled


def test_the_progress_bar_says_when_it_compiles(glide, capsys):
    glide.stage("base")._batches._compiled.clear()
    shown = []
    for _ in range(2):
        generate(glide, ["all red"] * 4, progress=True)
        shown.append(capsys.readouterr().err)
    assert "compiling" in shown[0] and "compiling" not in shown[1]


def test_the_negative_prompt_replaces_the_empty_caption(glide):
    plain = generate(glide, ["all red"], guidance_scale=3.0)
    same = generate(glide, ["all red"], guidance_scale=3.0, negative_prompt="")
    other = generate(glide, ["all red"], guidance_scale=3.0, negative_prompt="all pink")
    np.testing.assert_array_equal(plain, same)
    assert not np.array_equal(plain, other)
    # Away from itself there is nowhere to go: the guided model is the conditional one.
    itself = generate(glide, ["all red"], guidance_scale=3.0, negative_prompt="all red")
    unguided = generate(glide, ["all red"], guidance_scale=1)
    assert np.abs(itself.astype(int) - unguided).max() <= 1
    empty = generate(glide, ["all red"], guidance_scale=0, negative_prompt="all blue")
    conditional = generate(glide, ["all blue"], guidance_scale=1)
    assert np.abs(empty.astype(int) - conditional).max() <= 1


def test_samples_hold_images_prompts_seeds_and_settings(glide, tmp_path):
    samples = glide.generate(["all red", "all blue"], n=2, seed=[3, 8], steps=4, eta=0.5)
    assert samples.prompts == ["all red", "all red", "all blue", "all blue"]
    assert samples.seeds == [3, 4, 8, 9]
    assert samples.settings == glide.settings("base", steps=4, eta=0.5)
    again = glide.generate("all blue", seed=samples.seeds[3], steps=4, eta=0.5)
    assert np.abs(again.images.astype(int) - samples[3:]).max() <= 1
    assert len(samples) == 4 and samples.shape == (4, 8, 8, 3)
    np.testing.assert_array_equal(np.stack(list(samples)), samples)
    np.testing.assert_array_equal(np.asarray(samples.to_pil()[1]), samples[1])
    assert "images" not in repr(samples)
    with pytest.raises(UserError, match=r"columns must be at least 1, not 0"):
        samples.save_grid(tmp_path / "grid.png", columns=0)
    samples.save_grid(str(tmp_path / "grid.png"), columns=2)
    assert Image.open(tmp_path / "grid.png").size[0] > 2 * 192


def test_text_is_encoded_outside_the_loop_over_steps(glide):
    """The loop's program holds nothing of the text transformer: its MLP's shape does not occur."""
    stage = glide.stage("base")
    length, width = stage.model.text.length, stage.model.text.width
    inputs = Inputs(**stage._inputs(["all red"], [0], Conditions(), None))
    negative = stage.tokenizer.encode([""], length)
    settings = changed_settings(stage.config.sample, steps=4)
    plan = stage.programs.plan(settings)
    values, (recipe, table, _) = Values.of(settings, plan.schedule), chunks(plan, settings)[0]
    assert recipe.guided
    programs, params = stage.programs, stage.params
    begun = programs.begin.trace(params, inputs, negative, values, guided=True, history=0)
    given = (inputs.of_steps, *begun.out_info, values, table, jnp.int32(4))
    loop = str(programs.advance.trace(params, None, *given, clip=None, recipe=recipe).jaxpr)
    hidden = f"f32[2,{length},{4 * width}]"
    assert hidden in str(begun.jaxpr) and hidden not in loop
    assert loop.count(" while[") == 1


def test_errors_name_what_is_wrong(glide):
    for message, call in {
        "no prompts": lambda: glide.generate([]),
        "3 seeds for 1 prompts": lambda: glide.generate(["x"], seed=[1, 2, 3]),
        "unknown setting speed: choose from sampler": lambda: glide.generate(["x"], speed=3),
        "sample.guidance_scale must be a number": lambda: glide.generate(
            ["x"], guidance_scale=float("nan")
        ),
        r"no clip model is given, only: base": lambda: glide.generate(["x"], n=4, keep=2, steps=1),
        r"no upsample model is given": lambda: glide.generate(["x"], steps=1, upsample=True),
        r"keep \(2\) must be|no clip model": lambda: glide.generate(["x"], keep=2),
        r"guidance_scale cannot be 'much'": lambda: glide.generate(["x"], guidance_scale="much"),
        r"guidance_interval .* must be low, then high": lambda: glide.generate(
            ["x"], guidance_interval=[900, 100]
        ),
        r"seeds must be in \[0, 2\*\*32\), not -1": lambda: glide.generate(["x"], seed=-1),
        "--fsdp 0: must divide": lambda: Glide.load("demo/base", fsdp=0).generate("x"),
        "no models: give": lambda: Glide.load(),
        r"nothing to inpaint": lambda: glide.inpaint(IMAGE, np.ones((20, 30), bool), ["x"]),
        r"strength 0 must be above 0": lambda: glide.edit(IMAGE, ["x"], strength=0),
        r"the mask is 3 x 2 pixels, but the image is 30 x 20": lambda: glide.inpaint(
            IMAGE, np.ones((2, 3), bool), ["x"]
        ),
    }.items():
        with pytest.raises(UserError, match=message):
            call()


def test_images_that_are_not_finite_are_refused(glide):
    """One line instead of black images."""
    stage = glide.stage("base")
    weights = stage.params
    name = "unet.norm_out.scale"
    stage.use(weights | {name: np.full(weights[name].shape, np.nan, np.float32)})
    try:
        with pytest.raises(UserError, match=r"^sampling gave numbers that are not finite"):
            generate(glide, ["all red"] * 4)
    finally:
        stage.use(weights)


def test_a_set_of_models_shows_them(models):
    assert re.fullmatch(
        r"Glide\(base: .*/base, 8 px; upsample: .*/upsample, 16 px; clip: .*/clip, 8 px\)",
        repr(Glide.load(models / "base", models / "upsample", models / "clip")),
    )


# With all models: base, upsampler, inpainting ones and CLIP.

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
KNOWN = np.ones((20, 30), bool)
KNOWN[5:15, 8:20] = False


@pytest.fixture(scope="module")
def everything(models):
    return Glide.load(models)


def test_a_folder_of_runs_and_runs_by_themselves_are_the_same(everything, models):
    one_by_one = Glide.load(*(models / role for role in reversed(Glide.roles)))
    assert set(one_by_one.runs) == set(everything.runs) == set(Glide.roles)
    with pytest.raises(UserError, match="are both base models"):
        Glide.load(models, models / "base")
    with pytest.raises(UserError, match="is not a run folder"):
        Glide.load(models / "base" / "samples")


def test_upsampling_starts_from_8_bit_levels(everything):
    small = everything.generate(["all red", "all blue"], steps=2, seed=[3, 4], upsample=False)
    large = everything.generate(["all red", "all blue"], steps=2, seed=[3, 4])
    assert small.shape == (2, 8, 8, 3) and large.shape == (2, 16, 16, 3)
    again = everything.upsample(small, ["all red", "all blue"], seed=[3, 4])
    np.testing.assert_array_equal(large, again)
    other = everything.upsample(255 - small.images, "all red", seed=[3, 4])
    assert not np.array_equal(other, again)
    with pytest.raises(UserError, match=r"\(2, 16, 16, 3\), but must have \(2, 8, 8, 3\)"):
        everything.upsample(large, ["x"])


def test_one_model_at_a_time_samples_the_same(everything, models):
    frugal = Glide.load(models, one_at_a_time=True)
    sampled = frugal.generate(["all red", "all blue"], steps=2, seed=5)
    np.testing.assert_array_equal(
        sampled, everything.generate(["all red", "all blue"], steps=2, seed=5)
    )
    assert set(frugal._loaded) == {"upsample"}
    large = weakref.ref(frugal.stage("upsample"))
    gc.disable()  # the memory is needed at once
    frugal.generate(["all red", "all blue"], steps=2, upsample=False)
    gc.enable()
    assert large() is None


@pytest.mark.parametrize(("trained_for_it", "fit"), [(True, "pad"), (False, "crop")])
def test_inpainting_keeps_known_pixels_exactly(everything, models, trained_for_it, fit):
    glide = everything if trained_for_it else Glide.load(models / "base", models / "upsample")
    inpainted = glide.inpaint(IMAGE, KNOWN, ["all red"], n=2, fit=fit, steps=2)
    kept, expected = square_known(KNOWN, 16, fit), square_image(IMAGE, 16, fit)
    assert kept.any() and not kept.all()
    for image in inpainted:
        np.testing.assert_array_equal(image[kept], expected[kept])
        assert not np.array_equal(image, expected)
    assert not np.array_equal(*inpainted)
    # The result can be edited again.
    hole = np.ones((16, 16), bool)
    hole[:4] = False
    again = glide.inpaint(inpainted[0], hole, ["all blue"], n=2, steps=2)
    np.testing.assert_array_equal(again[0][8:], inpainted[0][8:])


def test_inpainting_models_do_not_see_the_pixels_under_the_mask(everything):
    other = np.where(KNOWN[..., None], IMAGE, 255 - IMAGE)
    options = {"n": 2, "steps": 2, "seed": 1, "upsample": False}
    a = everything.inpaint(IMAGE, KNOWN, ["all red"], **options)
    b = everything.inpaint(other, KNOWN, ["all red"], **options)
    np.testing.assert_array_equal(a, b)


def test_weak_edits_stay_near_the_image(glide):
    image = np.full((8, 8, 3), (220, 30, 30), np.uint8)
    weak = glide.edit(image, ["all red"], strength=1e-9, steps=20)  # one step
    strong = glide.edit(image, ["all blue"], strength=1.0, steps=20, guidance_scale=3)
    distance = [np.abs(edited[0].astype(int) - image).mean() for edited in (weak, strong)]
    assert distance[0] < 20 < distance[1]


def test_the_best_images_by_clip_are_kept_best_first(everything):
    options = {"steps": 2, "seed": 7, "upsample": False}
    prompts = ["all red", "all green"]
    sampled = everything.generate(prompts, n=4, **options)
    kept = everything.generate(prompts, n=4, keep=2, **options)
    scores = everything.rank(sampled, sampled.prompts).reshape(2, 4)
    for row in range(2):
        best = np.argsort(-scores[row])[:2]
        np.testing.assert_array_equal(kept[2 * row : 2 * row + 2], sampled[4 * row + best])
        assert kept.seeds[2 * row : 2 * row + 2] == [7 + i for i in best]
    assert kept.prompts == ["all red", "all red", "all green", "all green"]
    with pytest.raises(UserError, match=r"keep \(5\) must be between 1 and n \(4\)"):
        everything.generate(["x"], n=4, keep=5, steps=1)


def test_clip_guidance_raises_clips_score(everything):
    options = {"steps": 10, "sampler": "ddpm", "n": 4, "upsample": False, "guidance_scale": 1.0}
    plain = everything.generate(["all red"], **options)
    guided = everything.generate(["all red"], clip_guidance_scale=30.0, **options)
    both = everything.generate(
        ["all red"], clip_guidance_scale=30.0, **options | {"guidance_scale": 3.0}
    )
    scores = [everything.rank(p, ["all red"]).mean() for p in (plain, guided, both)]
    assert scores[1] > scores[0] + 0.01 and scores[2] > scores[0] + 0.01


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance_interval": (100, 800)},
        {"guidance_rescale": 0.7},
        {"dynamic_threshold": 0.9, "guidance_scale": 8.0},
        {"temperature": 0.5},
        {"sampler": "ddpm"},
        {"steps": "karras3"},
    ],
)
def test_every_setting_has_an_effect(glide, settings):
    scale = settings.get("guidance_scale", 8.0)
    plain = generate(glide, ["all red"], steps=3, guidance_scale=scale)
    changed = generate(glide, ["all red"], **{"steps": 3, "guidance_scale": scale} | settings)
    assert not np.array_equal(plain, changed)


def test_a_clip_of_another_size_is_refused(models, tmp_path):
    config = clip_config()
    image = dataclasses.replace(config.model.image, resolution_px=16)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, image=image))
    write_random_run(tmp_path / "clip", config, ClipTokenizer.train(CAPTIONS, 600))
    with pytest.raises(UserError, match="is for 16 px and 1000 diffusion steps"):
        Glide.load(models / "base", tmp_path / "clip").generate(["x"], clip_guidance_scale=1)


def test_prompts_that_are_too_long_are_logged(glide, caplog):
    generate(glide, ["all red " * 2000, "x"], steps=1)
    assert "prompts truncated to 8 tokens: 1" in caplog.text


def test_models_refuse_what_they_are_not_for(models):
    with pytest.raises(UserError, match="given, only: upsample; an upsampler alone"):
        Glide.load(models / "upsample").generate(["x"])
    with pytest.raises(UserError, match="this is an upsampler: it needs low-resolution images"):
        stage = Stage.load(Run.open(models / "upsample"))
        stage.sample(["x"], [0], stage.config.sample)
    with pytest.raises(
        UserError, match="this is an inpainting model: it needs an image and a mask"
    ):
        stage = Stage.load(Run.open(models / "base-inpaint"))
        stage.sample(["x"], [0], stage.config.sample)
    with pytest.raises(UserError, match="this model is a CLIP"):
        Stage.load(Run.open(models / "clip"))
    with pytest.raises(UserError, match="clip_guidance_scale needs a CLIP"):
        stage = Stage.load(Run.open(models / "base"))
        stage.sample(["x"], [0], changed_settings(stage.config.sample, clip_guidance_scale=2))


@pytest.mark.slow
def test_sharded_parameters_sample_the_same(glide, trained_run, monkeypatch):
    monkeypatch.setattr(sharding, "FSDP_MIN_SIZE", 64)
    sharded = Glide.load(trained_run, fsdp=2)
    prompts = ["all red", "all green", "", "all white"] * 2
    for count in (8, 1):  # divided over the eight devices, and on each of them
        options = {"batch_size": count, "seed": 3}
        one = generate(glide, prompts[:count], **options)
        two = generate(sharded, prompts[:count], **options)
        assert np.abs(one.astype(int) - two).max() <= 1
    kernel = sharded.stage("base").params["text.blocks.0.mlp_out.kernel"]
    assert kernel.sharding.spec == PartitionSpec("fsdp", None)
    assert kernel.addressable_shards[0].data.size == kernel.size // 2


@pytest.mark.slow
def test_a_sharded_clip_scores_and_guides_the_same(models, everything, monkeypatch):
    monkeypatch.setattr(sharding, "FSDP_MIN_SIZE", 64)
    sharded = Glide.load(models, fsdp=2)
    options = {"steps": 2, "sampler": "ddpm", "n": 8, "upsample": False, "clip_guidance_scale": 3.0}
    samples = everything.generate(["all red"], **options)
    others = sharded.generate(["all red"], **options)
    assert np.abs(samples.images.astype(int) - others.images).max() <= 1
    scores = (one.rank(samples, ["all red"]) for one in (everything, sharded))
    np.testing.assert_allclose(*scores, atol=1e-5)
    assert not sharded.clip.params["image.position_embedding"].sharding.is_fully_replicated


def test_a_number_of_devices_that_fsdp_does_not_divide_is_named(models):
    with pytest.raises(UserError, match=r"--fsdp 3: must divide the number of devices \(8\)"):
        Glide.load(models / "base", fsdp=3).generate(["x"])
