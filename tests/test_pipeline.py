import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glide_jax import Glide, UserError


@pytest.fixture(scope="module")
def glide(trained_run):
    return Glide.load(trained_run)


def generate(glide, prompts, **options):
    return glide.generate(prompts, **({"steps": 4, "batch_size": 4} | options))


def test_a_picture_does_not_depend_on_its_batch(glide):
    prompts = ["all red", "all green", "", "all white", "all pink"]
    together = generate(glide, prompts, seed=[1, 2, 3, 4, 5])
    assert together.shape == (5, 8, 8, 3) and together.dtype == np.uint8
    for i in (0, 4):
        alone = generate(glide, [prompts[i]], seed=i + 1)
        # Other batch sizes may sum in another order: a rounding step of 8 bits at most.
        assert np.abs(alone[0].astype(int) - together[i]).max() <= 1


def test_one_program_serves_other_prompts_seeds_and_scales(glide):
    generate(glide, ["all red"] * 4, batch_size=4, sampler="ddpm")
    compiled = glide._sample._cache_size()
    generate(glide, ["all blue", "", "x", "y"], sampler="ddpm", seed=9)
    generate(glide, ["z"], guidance_scale=7.5, negative_prompt="all red", sampler="ddpm")
    assert glide._sample._cache_size() == compiled


def test_negative_prompt_takes_the_empty_captions_place(glide):
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


def test_text_is_encoded_outside_the_loop_over_steps(glide):
    """The scan's body must hold nothing of the text transformer: its widths do not occur there."""
    length, width = glide.config.model.text.length, glide.config.model.text.width
    tokens, mask = map(jnp.asarray, glide.tokenizer.encode(["all red", ""], length))
    traced = jax.make_jaxpr(
        lambda params: glide._sample_batch(
            params, (tokens[:1], mask[:1]), (tokens[1:], mask[1:]), jax.random.split(
                jax.random.key(0), 1), jnp.float32(2.0),
            steps="4", sampler="ddim", eta=0.0, guided=True, progress=False,
        )
    )(glide.params)  # fmt: skip
    scans = [e for e in traced.jaxpr.eqns if e.primitive.name == "scan"]
    body = str(scans[-1].params["jaxpr"])
    text_shape = f"f32[2,{length},{width}]"
    assert text_shape in str(traced) and text_shape not in body


def test_errors_name_what_is_wrong(glide):
    with pytest.raises(UserError, match="no prompts"):
        glide.generate([])
    with pytest.raises(UserError, match="3 seeds for 1 prompts"):
        glide.generate(["x"], seed=[1, 2, 3])
