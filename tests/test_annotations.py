"""The package's annotations are checked in tests: types, and shapes that must agree."""

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from glide_jax.data.scenes.graph import Scene
from glide_jax.images import upright
from glide_jax.models.attention import attend


def test_shapes_of_arrays_must_agree():
    q, k = jnp.zeros((2, 5, 16)), jnp.zeros((2, 7, 16))
    with pytest.raises(TypeCheckError, match="checking the parameters of"):
        attend(q, k, k[:, :6], 2)
    with pytest.raises(TypeCheckError, match="checking the parameters of"):
        attend(q, k, k, heads="2")


def test_types_are_checked_without_arrays_too():
    with pytest.raises(TypeCheckError, match="image"):
        upright("red.png")
    with pytest.raises(TypeCheckError, match="background"):
        Scene(1, 0.0, ())
