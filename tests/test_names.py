"""Names, shapes and parameter counts of every tensor of the released checkpoints."""

import json
import math

import jax
import pytest
from helpers.golden_models import GOLDEN

from glide_jax.models.clip import clip_network
from glide_jax.models.glide import glide_network
from glide_jax.pretrained.names import (
    CLIP_IMAGE,
    CLIP_TEXT,
    DENOISER,
    from_original,
    original_names,
    to_original,
    tower,
)
from glide_jax.pretrained.sizes import UnstoredSettings, clip_sizes, denoiser_sizes, kind_of

PARAMETERS = {
    "base": 385_030_726,
    "upsample": 398_361_286,
    "base-inpaint": 385_037_638,
    "upsample-inpaint": 398_368_198,
    "clip/image-enc": 86_443_776,
    "clip/text-enc": 71_679_488,
}
RELEASED = {
    file: {name: tuple(shape) for name, (shape, _) in tensors.items()}
    for file, tensors in json.loads((GOLDEN / "state_dicts.json").read_text()).items()
}


def maps_both_ways(originals, shapes, rules):
    """Map abstract tensors to our names and back."""

    def round_trip(tensors):
        params = from_original(tensors, shapes, rules)
        return params, to_original(params, rules)

    abstract = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in originals.items()}
    params, back = jax.eval_shape(round_trip, abstract)
    assert {name: value.shape for name, value in params.items()} == {
        name: value.shape for name, value in shapes.items()
    }
    assert {name: value.shape for name, value in back.items()} == originals


@pytest.mark.parametrize("kind", ["base", "upsample", "base-inpaint", "upsample-inpaint"])
def test_every_tensor_of_a_released_model_maps_both_ways(kind):
    originals = RELEASED[kind]
    assert kind_of(originals) == kind
    network = glide_network(denoiser_sizes(originals, UnstoredSettings()))
    assert network.parameter_count == PARAMETERS[kind]
    maps_both_ways(originals, network.shapes, DENOISER)


def test_every_tensor_of_the_released_clip_maps_both_ways():
    text, image = RELEASED["clip/text-enc"], RELEASED["clip/image-enc"]
    assert (kind_of(text), kind_of(image)) == ("clip text", "clip image")
    shapes = clip_network(clip_sizes(text, image, UnstoredSettings())).shapes
    for name, originals, rules in (("text", text, CLIP_TEXT), ("image", image, CLIP_IMAGE)):
        part = tower(shapes, name)
        assert (
            sum(math.prod(shape.shape) for shape in part.values()) == PARAMETERS[f"clip/{name}-enc"]
        )
        maps_both_ways(originals, part, rules)


def test_a_name_that_no_rule_matches_is_an_error():
    with pytest.raises(KeyError, match=r"unet\.new"):
        original_names(["unet.new.kernel"], DENOISER)
