"""Arguments of the Python API: what they mean, and what is refused by name."""

import numpy as np
import pytest

from glide_jax.errors import UserError
from glide_jax.sampling.arguments import MAX_IMAGES, image_seeds, prompt_list, require_whole
from glide_jax.sampling.request import Request

NO_SETTINGS = {"settings": {}}


def refused(call, *arguments, **options):
    with pytest.raises(UserError) as error:
        call(*arguments, **options)
    line = str(error.value)
    assert "\n" not in line and len(line) < 200
    return line


def test_a_string_is_one_prompt():
    assert prompt_list("a red star") == ["a red star"]
    assert prompt_list(("a", np.str_("b"))) == ["a", "b"]
    assert refused(prompt_list, []) == "no prompts: give at least one"
    assert refused(prompt_list, None) == "prompts must be strings, not None"
    assert refused(prompt_list, ["a", 7]) == "every prompt must be a string, not 7"


def test_seeds_count_from_the_seed_of_each_prompt():
    assert image_seeds(7, 2, 2) == [7, 8, 7, 8]
    assert image_seeds(np.int64(7), 1, 1) == image_seeds([7], 1, 1) == [7]
    assert image_seeds(np.array([1, 5]), 2, 2) == [1, 2, 5, 6]


def test_no_seed_is_a_random_one():
    first, second = (image_seeds(None, 2, 2) for _ in range(2))
    assert first != second
    assert first[0] == first[2] == first[1] - 1 == first[3] - 1


@pytest.mark.parametrize("seed", [1.5, "12", True, [1, 2.5], [[1], 2], np.float32(3), {}])
def test_seeds_that_are_no_whole_numbers_are_refused(seed):
    assert refused(image_seeds, seed, 2, 1).startswith(("seed must be a whole number", "0 seeds"))


@pytest.mark.parametrize("seed", [-1, 2**32, pytest.param(10**5000, id="digits")])
def test_seeds_out_of_range_are_refused(seed):
    assert refused(image_seeds, seed, 1, 1).startswith("seeds must be in [0, 2**32), not ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 10**9}, "n must be at most 1,048,576, not 1000000000"),
        ({"n": 10**5000}, "n must be at most 1,048,576, not a number of thousands of digits"),
        ({"n": 2.0}, "n must be a whole number, not 2.0"),
        ({"keep": 0}, "keep must be at least 1, not 0"),
        ({"keep": 1.5}, "keep must be a whole number, not 1.5"),
        ({"batch_size": 10**9}, "batch_size must be at most 65,536, not 1000000000"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"upsample": "no"}, "upsample must be True, False or None, not 'no'"),
        ({"upsample": np.array([True, False])}, "upsample must be True, False or None, not array("),
        ({"negative_prompt": ["a"]}, "negative_prompt must be a string, not ['a']"),
        ({"fit": "squeeze"}, "fit must be crop or pad or stretch, not 'squeeze'"),
        ({"strength": float("nan")}, "strength nan must be above 0"),
        ({"strength": float("inf")}, "strength inf must be above 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    assert refused(Request.of, "x", 0, **NO_SETTINGS, **options).startswith(message)


def test_too_many_images_of_many_prompts_are_refused():
    line = refused(Request.of, ["x"] * 1025, 0, n=1024, **NO_SETTINGS)
    assert line.startswith("1,025 prompts with n 1,024 are more than 1,048,576 images")
    assert require_whole("n", np.int32(1024), 1, MAX_IMAGES) == 1024
