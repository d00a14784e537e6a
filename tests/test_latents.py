"""Arithmetic of embeddings, in closed form."""

import numpy as np
import pytest

from glide_jax.errors import UserError
from glide_jax.sampling.latents import PrincipalComponents, slerp, text_difference

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 6, 5, 3)).astype(np.float32)
THETAS = np.linspace(0, 1, 5)


def test_slerp_turns_evenly_from_one_end_to_the_other():
    """As one vector: element by element, as a script of diffusers does, is another path."""
    unit = [x / np.linalg.norm(x) for x in (A, B)]
    path = slerp(*unit, THETAS)
    np.testing.assert_allclose(path[0], unit[0], atol=1e-6)
    np.testing.assert_allclose(path[-1], unit[1], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(path.reshape(5, -1), axis=1), 1, atol=1e-6)
    steps = np.arccos(np.sum(path[:-1] * path[1:], axis=(1, 2, 3)))
    angle = np.arccos(np.sum(unit[0] * unit[1]))
    np.testing.assert_allclose(steps, angle / 4, rtol=1e-4)


@pytest.mark.parametrize("factor", [1.0, 3.0, -1.0])
def test_slerp_of_parallel_vectors_is_linear(factor):
    path = slerp(A, factor * A, THETAS)
    expected = (1 + (factor - 1) * THETAS)[:, None, None, None] * A
    np.testing.assert_allclose(path, expected, atol=1e-5)


def test_a_text_difference_has_the_length_of_the_image_and_ends_at_the_difference():
    image, before, after = 10 * A.ravel(), A.ravel(), B.ravel()
    edited = text_difference(image, before, after, np.array([0.0, 0.3, 1.0]))
    np.testing.assert_allclose(edited[0], image, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(edited, axis=1), np.linalg.norm(image), rtol=1e-5)
    cosine = edited[2] @ (after - before) / np.linalg.norm(edited[2])
    assert cosine == pytest.approx(np.linalg.norm(after - before), rel=1e-5)
    with pytest.raises(UserError, match="the two captions are the same"):
        text_difference(image, after, after, THETAS)


def test_components_rebuild_their_own_embeddings():
    low_rank = RNG.normal(size=(40, 3)) @ RNG.normal(size=(3, 8)) + 5
    basis = PrincipalComponents.of(low_rank.astype(np.float32))
    assert basis.components.shape == (8, 8)
    errors = [
        np.abs(basis.rebuilt(z.astype(np.float32), [1, 2, 3, 8]) - z).max(1) for z in low_rank[:4]
    ]
    mean = np.mean(errors, 0)
    assert mean[0] > mean[1] > 0.01 and mean[2] < 1e-4 and mean[3] < 1e-4
    with pytest.raises(UserError, match="at least 2 embeddings"):
        PrincipalComponents.of(np.zeros((1, 8), np.float32))
