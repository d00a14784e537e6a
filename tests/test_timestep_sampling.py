"""Distributions of t against counts, and the loss history against ADM's rule in plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from glide_jax.diffusion.timestep_sampling import (
    LossHistory,
    draw,
    probabilities,
    rising,
    uniform,
    update,
)

KEY = jax.random.key(0)
T = 5
updated = jax.jit(update)
jitted_draw = jax.jit(draw, static_argnums=1)


def remembered(batches, T=T):
    """LossSecondMomentResampler, loss after loss: full lists lose their first."""
    lists = [[] for _ in range(T)]
    for t, losses in batches:
        for i, loss in zip(t, losses, strict=True):
            if np.isfinite(loss):
                lists[i] = [*lists[i], np.float32(loss)][-10:]
    return lists


def expected_probabilities(lists):
    if any(len(losses) < 10 for losses in lists):
        return np.full(len(lists), 1 / len(lists))
    root = np.array([np.sqrt(np.mean(np.float64(losses) ** 2)) for losses in lists])
    return root / root.sum() * 0.999 + 0.001 / len(lists)


def history_of(batches, T=T):
    history = LossHistory.empty(T)
    for t, losses in batches:
        history = updated(history, jnp.asarray(t, jnp.int32), jnp.asarray(losses, jnp.float32))
    return history


def full(scale, T=T):
    """Every t has ten losses; t's are of size scale[t]."""
    rng = np.random.default_rng(0)
    return history_of([(range(T), scale * rng.uniform(0.5, 1.5, T)) for _ in range(10)], T)


def assert_frequencies(t, p):
    """Within five standard errors of each."""
    share = np.bincount(t, minlength=len(p)) / len(t)
    assert (np.abs(share - p) < 5 * np.sqrt(p * (1 - p) / len(t)) + 1e-9).all()


def test_uniform_and_rising_frequencies():
    assert_frequencies(uniform(KEY, 100_000, 20), np.full(20, 1 / 20))
    assert_frequencies(rising(KEY, 100_000, 20), (2 * np.arange(20) + 1) / 400)
    assert uniform(KEY, 7, 1000).shape == rising(KEY, 7, 1000).shape == (7,)


batches = st.lists(
    st.lists(
        st.tuples(
            st.integers(0, T - 1),
            st.floats(0, 2.0**66, width=32) | st.sampled_from([np.nan, np.inf, -np.inf]),
        ),
        min_size=32,
        max_size=32,
    ).map(lambda pairs: tuple(zip(*pairs, strict=True))),
    max_size=8,
)


@settings(max_examples=25)
@given(batches)
def test_history_is_adms(batches):
    history, lists = history_of(batches), remembered(batches)
    for values, count, losses in zip(*history, lists, strict=True):
        assert sorted(values[: min(count, 10)].tolist()) == sorted(map(float, losses))
        assert (values[len(losses) :] == 0).all()
    if not any(map(any, lists)):
        return  # see test_losses_of_zero_draw_uniformly
    np.testing.assert_allclose(probabilities(history), expected_probabilities(lists), rtol=1e-5)


def test_of_many_equal_t_the_last_ten_count():
    losses = np.arange(1.0, 33)
    history = history_of([([3] * 32, losses)])
    assert sorted(history.values[3].tolist()) == losses[-10:].tolist()
    assert history.counts.tolist() == [0, 0, 0, 32, 0]
    history = updated(history, jnp.array([3, 3]), jnp.array([100.0, 200]))
    assert sorted(history.values[3].tolist()) == [*losses[-8:], 100, 200]


def test_losses_that_are_not_finite_are_ignored():
    losses = [np.nan, 1, np.inf, 2, *[np.nan] * 12]
    history = history_of([([1] * 16, losses)])
    assert history.values[1].tolist() == [1, 2, *[0] * 8]
    assert history.counts.tolist() == [0, 2, 0, 0, 0]


def test_uniform_until_every_t_has_ten_losses():
    rest = [(range(T - 1), np.arange(1.0, T))] * 20
    for nine in (0, 9):
        history = history_of([*rest, *[([T - 1], [7.0])] * nine])
        np.testing.assert_array_equal(probabilities(history), np.float32(1 / T))
    known = history_of([*rest, *[([T - 1], [7.0])] * 10])
    np.testing.assert_allclose(
        probabilities(known), 0.999 * np.array([1, 2, 3, 4, 7]) / 17 + 0.0002, rtol=1e-6
    )


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_only_the_ratios_of_losses_matter(scale):
    ones = probabilities(full(np.ones(T)))
    p = probabilities(full(np.full(T, scale)))
    np.testing.assert_allclose(p, ones if scale else np.full(T, 1 / T), rtol=1e-5)


def test_losses_of_zero_draw_uniformly():
    """And a single t with losses of 0 keeps its share of the uniform draws."""
    p = probabilities(full(np.array([0.0, 1, 1, 1, 1])))
    np.testing.assert_allclose(p[0], 0.0002, rtol=1e-5)
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-6)


def test_draws_follow_the_probabilities_and_weights_undo_them():
    history = full(np.array([0.1, 1, 3, 0.5, 10]))
    p = np.asarray(probabilities(history))
    t, weights = jitted_draw(KEY, 100_000, history)
    assert_frequencies(t, p)
    np.testing.assert_allclose(weights, 1 / (T * p[t]), rtol=1e-6)
    # The mean of anything is that over uniform t: the second moment says how well it is known.
    anything = np.array([3.0, -1, 4, 1, 5])
    weighted = np.asarray(weights) * anything[t]
    assert abs(weighted.mean() - anything.mean()) < 5 * weighted.std() / np.sqrt(len(t))


def test_without_losses_draws_are_uniform_with_weights_of_1():
    t, weights = jitted_draw(KEY, 10_000, LossHistory.empty(1000))
    np.testing.assert_allclose(weights, 1, rtol=1e-6)
    assert t.min() >= 0 and t.max() < 1000
    assert_frequencies(np.asarray(t) // 100, np.full(10, 0.1))


def test_the_history_is_the_same_on_any_number_of_devices():
    rng = np.random.default_rng(0)
    t = jnp.asarray(rng.integers(0, T, 64), jnp.int32)
    losses = jnp.asarray(rng.uniform(0, 1, 64), jnp.float32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    alone = updated(LossHistory.empty(T), t, losses)
    together = updated(LossHistory.empty(T), *jax.device_put((t, losses), spread))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)
