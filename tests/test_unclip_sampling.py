"""unCLIP's trajectories and its pipeline against Karlo's code, at the files' sizes and settings."""

from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.one_device import one_device_mesh
from helpers.unclip_golden import overridden, unclip_golden
from helpers.unclip_models import clip_config, converted, decoder_config, prior_config, sr_config

from glide_jax import UnCLIP
from glide_jax.config import Config, DiffusionConfig, SampleConfig
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.diffusion import loop
from glide_jax.diffusion.guidance import classifier_free
from glide_jax.diffusion.loop import Calls, Hooks, static_threshold
from glide_jax.diffusion.samplers import inverse_ddim, sampler_plan
from glide_jax.diffusion.schedule import Schedule
from glide_jax.models.build import build_network
from glide_jax.sampling import prior_stage, programs
from glide_jax.sampling import stage as stage_module
from glide_jax.sampling.clip import ClipScorer
from glide_jax.sampling.conditions import Conditions
from glide_jax.sampling.latents import slerp
from glide_jax.sampling.prior_stage import PriorStage
from glide_jax.sampling.stage import Stage
from glide_jax.shapes import TextStates

META, _, PIPELINE = unclip_golden("pipeline")


def close(ours, theirs, tolerance=1e-3):
    error = np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
    assert error < tolerance, error


def schedule(respacing):
    return Schedule.create("squaredcos_cap_v2", 1000, respacing)


def test_respaced_tables():
    meta, _, tables = unclip_golden("schedules")
    names = {"timestep_map": "timestep_map", "betas": "betas", "alpha_bar": "alphas_cumprod"}
    names |= {"posterior_log_variance_clipped": "posterior_log_variance_clipped"}
    for respacing in {name.partition("/")[0] for name in tables} - {"diffusers"}:
        ours = Schedule.create(meta["schedule"], 1000, respacing)
        for name, theirs in names.items():
            np.testing.assert_allclose(
                getattr(ours, name), tables[f"{respacing}/{theirs}"], rtol=1e-12
            )
    for name in (name for name in tables if name.endswith("/timesteps")):
        steps = schedule(name.split("/")[1]).timestep_map[::-1]
        np.testing.assert_array_equal(steps, tables[name])


# Trajectories, step by step


def texts(arrays):
    """The captions, then the empty caption for each, as the CLIP sees them."""
    pairs = [[arrays[kind + name] for kind in ("", "uncond_")] for name in FIELDS]
    return TextStates(*(jnp.asarray(np.concatenate(pair)) for pair in pairs))


FIELDS = ("text_emb", "text_enc", "mask")


def steps(denoise, plan, x_T, noise, hooks=Hooks(), predicts="eps"):  # noqa: B008
    """x_{t-1} and x_0 of each step; `denoise` is compiled, and shared by all samplers."""
    body = loop._loop(denoise, plan.solver, lambda k: jnp.asarray(noise[k]), hooks, predicts)
    state, calls = loop.begin(jnp.asarray(x_T), plan.solver.history), Calls.of(plan)
    calls, found = jax.tree.map(jnp.asarray, calls), []
    for i in range(plan.calls):
        state, x_0 = body(state, jax.tree.map(lambda x, i=i: x[i], calls))
        found.append((state.x_t, x_0))
    return [np.stack(part) for part in zip(*found, strict=True)]


def check(arrays, run, ours):
    """At t = 999, x_0 is eps's rounding error times 20,291."""
    x, x_0 = ours
    close(x, arrays[f"{run}/x"])
    theirs = arrays[f"{run}/pred_x0"]
    largest = np.abs(theirs).max()
    error = np.abs(x_0 - theirs).max(axis=tuple(range(1, x_0.ndim))) / largest
    assert error[0] < 5e-2 and error[1:].max(initial=0) < 1e-3, error


def test_prior():
    config, (_, weights, _) = prior_config(), unclip_golden("prior")
    meta, _, arrays = unclip_golden("prior_sampling")
    network, params = build_network(config), converted(config, weights)
    text = texts(arrays)

    @jax.jit
    def predict(params, x_t, t, text):
        x_0 = network.bind(params)(x_t, t, text)
        return jnp.concatenate([x_0, -jnp.ones_like(x_0)], -1)

    denoise = classifier_free(lambda x_t, t: predict(params, x_t, t, text), meta["guidance_scale"])
    for run, sampler, respacing, limit in (
        ("ddpm", "ddpm", meta["respacing"], meta["clamp"]),
        ("ddpm_clamp5", "ddpm", meta["respacing"], meta["clamp_diffusers"]),
        ("ddim", "ddim", meta["ddim_respacing"], meta["clamp"]),
    ):
        plan = sampler_plan(sampler, schedule(respacing), meta["ddim_eta"])
        hooks = Hooks(threshold=lambda x_0, limit=limit: jnp.clip(x_0, -limit, limit))
        ours = steps(denoise, plan, arrays["noise"], arrays["step_noise"], hooks, "x_0")
        for found, name in zip(ours, ("x", "pred_x0"), strict=True):
            close(found, arrays[f"{run}/{name}"])  # x_0 is the network's own: nothing is amplified


@cache
def decoder():
    """`(x_t, t) -> out` of captions, then empty captions; compiled."""
    config, (_, weights, _) = decoder_config(), unclip_golden("decoder")
    _, _, arrays = unclip_golden("decoder_sampling")
    network, params = build_network(config), converted(config, overridden(weights, arrays))
    text, embedding = texts(arrays), jnp.concatenate([arrays["image_emb"]] * 2)
    given = jnp.arange(len(embedding)) < len(arrays["image_emb"])

    @jax.jit
    def run(params, x_t, t, text, embedding, given):
        model, unread = network.bind(params), jnp.zeros((len(t), 1), jnp.int32)
        features = model.encode_text(unread, unread > 0, states=text)
        return model(x_t, t, model.add_image(features, embedding, given))

    return lambda x_t, t: run(params, x_t, t, text, embedding, given)


def test_decoder():
    meta, _, arrays = unclip_golden("decoder_sampling")
    denoise = classifier_free(decoder(), meta["guidance_scale"])
    for run, sampler, respacing, eta in (
        ("cfg_ddpm", "ddpm", "respacing", 0.0),
        ("cfg_ddim", "ddim", "ddim_respacing", 0.0),
        (f"cfg_ddim_eta{meta['eta']}", "ddim", "ddim_respacing", meta["eta"]),
    ):
        plan = sampler_plan(sampler, schedule(meta[respacing]), eta)
        check(arrays, run, steps(denoise, plan, arrays["noise"], arrays["step_noise"]))


def captions_only(x_t, t):
    """The decoder's output for the captions."""
    return decoder()(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]))[: len(t)]


@pytest.mark.parametrize(("run", "clips"), [("invert", False), ("invert_clipped", True)])
def test_decoder_inversion(run, clips):
    """Karlo's steps: the picture stands for row 0's x_t, so the first of ours is left out."""
    meta, _, arrays = unclip_golden("decoder_sampling")
    rows = schedule(meta["ddim_respacing"])
    plan = inverse_ddim(rows)
    after_first = {name: table[1:] for name, table in plan.coefficients.items()}
    plan = plan._replace(
        step_of_call=plan.step_of_call[1:], rows=plan.rows[1:], coefficients=after_first
    )
    hooks = Hooks(threshold=static_threshold if clips else None)
    x, _ = steps(captions_only, plan, arrays["picture"], arrays["step_noise"], hooks)
    close(x, arrays[f"{run}/x"][: len(x)])
    back, _ = steps(captions_only, sampler_plan("ddim", rows), arrays[f"{run}/x"][-2], x, hooks)
    close(back, arrays[f"{run}/back_x"])


# The pipeline


class GoldenTokenizer(Tokenizer):
    """Reads "0", "1", ... as the golden captions, and "" as the empty one."""

    def __init__(self):
        pass

    def encode(self, captions, length):
        meta, _, _ = unclip_golden("clip")
        empty = np.zeros(length, np.int32)
        empty[:2] = meta["start_token"], meta["end_token"]
        tokens, mask = PIPELINE["text2im/tokens"].astype(np.int32), PIPELINE["text2im/mask"]
        rows = [(tokens[int(c)], mask[int(c)]) if c else (empty, empty > 0) for c in captions]
        return tuple(np.stack(part) for part in zip(*rows, strict=True))


def golden_models(monkeypatch):
    """Karlo's small models behind `UnCLIP`, on one device, with the golden noise by seed."""
    monkeypatch.setattr(stage_module, "local_mesh", lambda fsdp: one_device_mesh())
    monkeypatch.setattr(prior_stage, "local_mesh", lambda fsdp: one_device_mesh())
    noise = {}
    for file in ("prior_sampling", "decoder_sampling", "sr_sampling"):
        _, _, arrays = unclip_golden(file)
        noise[arrays["noise"].shape[1:]] = [arrays["noise"], arrays["step_noise"]]
    small = noise[PIPELINE["variation/noise"].shape[1:]]  # seeds 2 and 3
    small[0] = np.concatenate([small[0], PIPELINE["variation/noise"]])
    small[1] = np.concatenate([small[1], PIPELINE["variation/step_noise"]], 1)

    def rows(keys, shape):
        """A decoder's key is its seed; others are folded."""
        count = len(noise[shape][0])
        return jax.random.key_data(keys)[:, 1] if count > 2 else jnp.arange(len(keys)) % count

    def first(keys, shape):
        return jnp.asarray(noise[shape][0])[rows(keys, shape)]

    def each(keys, shape):
        return lambda k: jnp.asarray(noise[shape][1])[k, rows(keys, shape)]

    for module in (programs, prior_stage):
        monkeypatch.setattr(module, "initial_noise", first)
        monkeypatch.setattr(module, "per_image_noise", each)
    models = UnCLIP({})
    for role, file, config, overrides in (
        ("clip", "clip", clip_config(), None),
        ("prior", "prior", prior_config(), None),
        ("decoder", "decoder", decoder_config(), "decoder_sampling"),
        ("upsample", "sr", sr_config("sr_sampling"), "sr_sampling"),
    ):
        _, weights, _ = unclip_golden(file)
        if overrides is not None:
            weights = overridden(weights, unclip_golden(overrides)[2])
        stage = {"upsample": "sr"}.get(role, role)
        settings = SampleConfig(
            sampler="ddpm",
            steps=META.get(f"{stage}_respacing", "1"),
            guidance_scale=META.get(f"{stage}_scale", 1.0),
        )
        run = Config(model=config, diffusion=DiffusionConfig(), sample=settings)
        models.runs[role] = SimpleNamespace(config=run, path=role)
        params = jax.device_put(converted(config, weights))
        kind = {"clip": ClipScorer, "prior": PriorStage}.get(role, Stage)
        tokenizer = {ClipScorer: (GoldenTokenizer(),), Stage: (None,)}.get(kind, ())
        models._loaded[role] = kind(run, params, *tokenizer)
    return models


def close_in_levels(ours, theirs):
    """8-bit levels against floats in [-1, 1]: half a level of rounding, and the tolerance."""
    error = np.abs(ours - (theirs + 1) * 127.5).max()
    assert error < 0.5 + 0.2, error


def recorded_upsampler(models, monkeypatch):
    """Fills a list with the upsampler's low-resolution image, resized, and a dict of its x_t.

    The dict is by the number of calls made, of which a chunk has one with few steps.
    """
    upsampler, low_res, x = models.stage("upsample").programs, [], {}
    compiled = upsampler.advance

    def advance(*given, **static):
        *_, conditioned, _, _, _, calls = given
        low_res.append(conditioned.condition)
        state = compiled(*given, **static)
        x[max(x, default=0) + int(calls)] = state.x_t
        return state

    monkeypatch.setattr(upsampler, "advance", advance)
    return low_res, x


def test_pipeline(monkeypatch):
    models = golden_models(monkeypatch)
    prompts = [str(i) for i in range(len(PIPELINE["text2im/tokens"]))]
    close(models.embed_prompts(prompts), PIPELINE["text2im/image_embedding"])
    seeds = range(len(prompts))
    samples = models.generate(prompts, seed=seeds)
    close_in_levels(samples.images, 2 * PIPELINE["text2im/image_large"] - 1)
    small = models.generate(prompts, seed=seeds, upsample=False)
    close_in_levels(small.images, np.clip(PIPELINE["text2im/image_small"], -1, 1))
    photo, count = PIPELINE["variation/photo"], len(PIPELINE["variation/noise"])
    close(models.embed_images(photo), PIPELINE["variation/image_embedding"][:1])
    varied = models.variations(photo, n=count, seed=len(prompts), upsample=False)
    close_in_levels(varied.images, np.clip(PIPELINE["variation/image_small"], -1, 1))

    # The upsampler alone, step by step: from the decoder's image, errors would add up.
    _, _, upsampled = unclip_golden("sr_sampling")
    low_res, x = recorded_upsampler(models, monkeypatch)
    small = Conditions(low_res=upsampled["small"])
    models.stage("upsample").sample(prompts, seeds, models.settings("upsample"), small)
    close(low_res[0], upsampled["low_res"])
    assert max(x) == len(upsampled["ddpm/x"])
    close([x[calls] for calls in sorted(x)], upsampled["ddpm/x"][np.array(sorted(x)) - 1])

    # Other scales, limits, steps, seeds and embeddings compile nothing.
    stage = models.stage("decoder").programs
    programs_of = stage.begin, stage.advance, models._load_prior().program
    compiled = [program._cache_size() for program in programs_of]
    changed = {"guidance_scale": 2.0, "embedding_threshold": 5.0, "steps": 20}
    options = {"seed": [1, 0], "upsample": False, "guidance_scale": 3.0, "steps": 8}
    models.generate(prompts, prior_settings=changed, negative_prompt="0", **options)
    models.decode(slerp(*models.embed_text(prompts), np.array([0.2, 0.7])), prompts, **options)
    assert [program._cache_size() for program in programs_of] == compiled
