"""Names, shapes and parameter counts of every tensor of unCLIP's published checkpoints."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.unclip_golden import GOLDEN, unclip_golden
from helpers.unclip_models import clip_config, converted, decoder_config, prior_config, sr_config

from glide_jax.errors import UserError
from glide_jax.models.build import build_network
from glide_jax.pretrained import diffusers_configs, unclip_sizes
from glide_jax.pretrained.names import (
    from_original,
    original_names,
    original_shape,
    to_original,
)
from glide_jax.pretrained.projections import fused, split
from glide_jax.pretrained.sizes import UnstoredSettings, kind_of
from glide_jax.pretrained.unclip_names import (
    CLIP_STATISTICS,
    DIFFUSERS_DECODER,
    DIFFUSERS_PRIOR,
    DIFFUSERS_SR,
    KARLO_DECODER,
    KARLO_PRIOR,
    KARLO_SR,
    TRANSFORMERS_CLIP,
)
from glide_jax.pretrained.vision_names import OPENAI_CLIP

RELEASED = {
    file: {name: tuple(shape) for name, (shape, _) in tensors.items()}
    for file, tensors in json.loads((GOLDEN / "state_dicts.json").read_text("utf-8")).items()
}
OF_ARCHIVES = {"input_resolution", "context_length", "vocab_size"}
"""Integers, which are not read."""
DEFAULTS = UnstoredSettings()
PARAMETERS = {
    "prior": 1_022_028_544 + 2 * 768,  # with the statistics
    "decoder": 893_318_086,
    "upsample": 2 * 691_579_523,
    "clip": 427_616_513,
}


def released_configs():
    clip = {k: x for k, x in RELEASED["karlo/clip_vit_l_14"].items() if k not in OF_ARCHIVES}
    return {
        "prior": unclip_sizes.karlo_prior_sizes(RELEASED["karlo/prior"], DEFAULTS),
        "decoder": unclip_sizes.karlo_decoder_sizes(RELEASED["karlo/decoder"], DEFAULTS),
        "upsample": unclip_sizes.karlo_sr_sizes(RELEASED["karlo/sr_64_256"], DEFAULTS),
        "clip": unclip_sizes.plain_clip_sizes(clip, unclip_sizes.OPENAI_NAMES, 768, DEFAULTS),
    }


def published(config, rules, head_width=None):
    """Shapes that a model has in the layout of some rules, by name. Nothing is allocated."""
    shapes = build_network(config).shapes
    names = original_names(shapes, rules)
    whole = {
        names[ours]: np.broadcast_to(np.float32(0), original_shape(ours, shape.shape, rules))
        for ours, shape in shapes.items()
    }
    return {name: x.shape for name, x in split(whole, head_width).items()}


def folders(*names):
    """Shapes of components of diffusers' pipeline, as the tables name their tensors."""
    return {
        f"{folder}.{name}": shape
        for folder in names
        for name, shape in RELEASED[f"diffusers/{folder}"].items()
    }


@pytest.fixture(scope="module")
def configs():
    return released_configs()


def test_karlos_names_and_shapes(configs):
    statistics = {f"{CLIP_STATISTICS}.{k}": x for k, x in RELEASED["karlo/clip_stats"].items()}
    assert published(configs["prior"], KARLO_PRIOR) == RELEASED["karlo/prior"] | statistics
    assert published(configs["decoder"], KARLO_DECODER) == RELEASED["karlo/decoder"]
    assert published(configs["upsample"], KARLO_SR) == RELEASED["karlo/sr_64_256"]
    clip = {k: x for k, x in RELEASED["karlo/clip_vit_l_14"].items() if k not in OF_ARCHIVES}
    assert published(configs["clip"], OPENAI_CLIP) == clip
    assert {
        name: build_network(config).parameter_count for name, config in configs.items()
    } == PARAMETERS
    kinds = {name: kind_of(shapes) for name, shapes in RELEASED.items() if "karlo/" in name}
    assert len(set(kinds.values())) == len(kinds)


def test_diffusers_names_and_shapes(configs):
    prior = folders("prior")
    for name in ("prior.clip_mean", "prior.clip_std"):
        assert prior[name][0] == 1
        prior[name] = prior[name][1:]
    assert published(configs["prior"], DIFFUSERS_PRIOR, 64) == prior
    decoder = folders("decoder", "text_proj")
    assert published(configs["decoder"], DIFFUSERS_DECODER, 64) == decoder
    upsampler = folders("super_res_first", "super_res_last")
    assert published(configs["upsample"], DIFFUSERS_SR) == upsampler
    towers = RELEASED["diffusers/text_encoder"] | RELEASED["diffusers/image_encoder"]
    assert published(configs["clip"], TRANSFORMERS_CLIP) == towers | {"logit_scale": ()}


def test_sizes_in_diffusers_settings_are_those_of_the_tensors(configs):
    prior, decoder, upsampler = (configs[name] for name in ("prior", "decoder", "upsample"))
    settings = diffusers_configs.prior_config(prior)
    assert diffusers_configs.prior_sizes(settings, DEFAULTS) == prior
    settings = diffusers_configs.decoder_configs(decoder)
    assert diffusers_configs.decoder_sizes(*settings, DEFAULTS) == decoder
    settings = diffusers_configs.sr_config(upsampler)
    assert diffusers_configs.sr_sizes(settings, DEFAULTS) == upsampler
    shapes = {
        **RELEASED["diffusers/text_encoder"],
        **RELEASED["diffusers/image_encoder"],
    }
    clip = unclip_sizes.plain_clip_sizes(shapes, unclip_sizes.TRANSFORMERS_NAMES, 768, DEFAULTS)
    assert clip == configs["clip"]
    text, image = diffusers_configs.clip_configs(clip)
    assert diffusers_configs.with_heads(clip, text, image) == clip
    with pytest.raises(UserError, match="hidden_act is gelu, not quick_gelu as OpenAI's"):
        diffusers_configs.with_heads(clip, text, image | {"hidden_act": "gelu"})


def test_models_that_diffusers_cannot_have_are_refused(configs):
    prior, decoder = configs["prior"], configs["decoder"]
    with pytest.raises(UserError, match="diffusers has no autoregressive prior"):
        diffusers_configs.prior_config(replace(prior, architecture="autoregressive"))
    with pytest.raises(UserError, match="need text states as wide as embeddings"):
        diffusers_configs.prior_config(replace(prior, embedding_width=64))
    with pytest.raises(UserError, match="need text states as wide as embeddings"):
        diffusers_configs.decoder_configs(replace(decoder, image_embedding_width=64))
    with pytest.raises(UserError, match=r"need model\.text\.encoder clip, image_tokens"):
        diffusers_configs.decoder_configs(replace(decoder, image_tokens=0))
    with pytest.raises(UserError, match=r"need model\.last_step_network"):
        diffusers_configs.sr_config(replace(configs["upsample"], last_step_network=False))


def test_projections_are_split_by_head():
    q, k, v = (100 * i + np.arange(4)[:, None] for i in range(3))
    parts = {"a.to_q.weight": q, "a.to_k.weight": k, "a.to_v.weight": v, "a.to_q.bias": q[:, 0],
             "a.to_k.bias": k[:, 0], "a.to_v.bias": v[:, 0], "norm.weight": q}  # fmt: skip
    by_head = fused(parts, 2)
    rows = [0, 1, 100, 101, 200, 201, 2, 3, 102, 103, 202, 203]
    np.testing.assert_array_equal(by_head["a.to_qkv.weight"][:, 0], rows)
    np.testing.assert_array_equal(by_head["a.to_qkv.bias"], rows)
    together = fused(parts, None)["a.to_qkv.bias"]
    np.testing.assert_array_equal(together, [*range(4), *range(100, 104), *range(200, 204)])
    for width, whole in ((2, by_head), (None, fused(parts, None))):
        back = split(whole, width)
        assert back.keys() == parts.keys()
        for name, part in parts.items():
            np.testing.assert_array_equal(back[name], part)
    del parts["a.to_k.bias"]
    with pytest.raises(UserError, match=r"the weights lack a\.to_k\.bias"):
        fused(parts, 2)
    with pytest.raises(UserError, match="which heads of 3 do not divide"):
        fused({"a.add_k_proj.bias": q[:, 0], "a.add_v_proj.bias": v[:, 0]}, 3)
    with pytest.raises(UserError, match=r"a\.add_v_proj\.bias has shape"):
        fused({"a.add_k_proj.bias": q[:, 0], "a.add_v_proj.bias": v[:2, 0]}, 2)


@pytest.mark.parametrize(
    ("name", "make_config", "rules", "other"),
    [
        ("clip", clip_config, OPENAI_CLIP, TRANSFORMERS_CLIP),
        ("prior", prior_config, KARLO_PRIOR, DIFFUSERS_PRIOR),
        ("decoder", decoder_config, KARLO_DECODER, DIFFUSERS_DECODER),
        ("sr", sr_config, KARLO_SR, DIFFUSERS_SR),
    ],
)
def test_the_golden_weights_map_both_ways_bit_for_bit(name, make_config, rules, other):
    config = make_config()
    head_width = {
        "prior": prior_config().width // prior_config().heads,
        "decoder": decoder_config().unet.head_width,
    }.get(name)
    _, weights, _ = unclip_golden(name)
    params, shapes = converted(config, weights), build_network(config).shapes
    back = to_original(params, rules)
    assert back.keys() - weights.keys() == {
        f"{CLIP_STATISTICS}.{i}" for i in (0, 1) if name == "prior"
    }
    for key, value in weights.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)
    theirs = split(to_original(params, other), head_width)
    ours = from_original(fused(theirs, head_width), shapes, other)
    for key, value in params.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key)
