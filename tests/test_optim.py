import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny
from helpers.unread_source import UnreadSource
from optax.tree_utils import tree_get

from glide_jax import UserError
from glide_jax.config import OptimConfig
from glide_jax.training.build import require_startable
from glide_jax.training.optim import learning_rate, optimizer, select


def test_learning_rate_warms_up_and_decays():
    rate = learning_rate(OptimConfig(learning_rate=1.0, warmup_steps=10, decay_steps=110))
    np.testing.assert_allclose(
        [rate(0), rate(5), rate(10), rate(60), rate(110)], [0, 0.5, 1, 0.5, 0]
    )
    constant = learning_rate(OptimConfig(learning_rate=1.0, warmup_steps=10))
    np.testing.assert_allclose([constant(5), constant(10), constant(10**6)], [0.5, 1, 1])
    at_once = learning_rate(OptimConfig(learning_rate=1.0, warmup_steps=0))
    np.testing.assert_allclose([at_once(0), at_once(10**6)], [1, 1])


def test_the_learning_rate_ends_at_its_minimum_and_stays_there():
    config = OptimConfig(learning_rate=1.0, warmup_steps=10, decay_steps=110, min_learning_rate=0.2)
    rate = learning_rate(config)
    np.testing.assert_allclose([rate(10), rate(60), rate(110), rate(10**6)], [1, 0.6, 0.2, 0.2])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"decay_steps": 2000, "min_learning_rate": 1.0}, r"min_learning_rate must be in \[0, .*3"),
        ({"min_learning_rate": 1e-5}, "optim.min_learning_rate needs optim.decay_steps"),
    ],
)
def test_a_minimum_that_cannot_work_is_refused(changes, line):
    with pytest.raises(UserError, match=line):
        OptimConfig(**changes)


def test_steps_with_a_learning_rate_of_zero_are_refused():
    def with_decay(decay_steps, **more):
        config = tiny.get_config()  # of 240 steps
        optim = dataclasses.replace(config.optim, decay_steps=decay_steps, **more)
        return dataclasses.replace(config, optim=optim)

    source = UnreadSource(8)
    require_startable(with_decay(240), source, 8)
    require_startable(with_decay(200, min_learning_rate=1e-5), source, 8)
    with pytest.raises(
        UserError, match=r"train.steps \(240\) is beyond .* --optim.decay-steps 240"
    ):
        require_startable(with_decay(200), source, 8)


def test_the_first_moment_can_be_bfloat16():
    params = {"a.kernel": jnp.full((4, 4), 0.5), "a.bias": jnp.zeros(4)}
    grads = {name: jnp.full_like(x, 0.3) for name, x in params.items()}
    updates = {}
    for dtype in ("float32", "bfloat16"):
        config = OptimConfig(first_moment_dtype=dtype, warmup_steps=0)
        transform = optimizer(config, dict.fromkeys(params, True))
        state = transform.init(params)
        for _ in range(3):
            updates[dtype], state = transform.update(grads, state, params, finite=jnp.array(True))
        for name, of in (("mu", dtype), ("nu", "float32")):
            assert {str(x.dtype) for x in tree_get(state, name).values()} == {of}
    for name, exact in updates["float32"].items():
        assert updates["bfloat16"][name].dtype == jnp.float32
        np.testing.assert_allclose(updates["bfloat16"][name], exact, rtol=0.01)


@pytest.mark.parametrize("first_moment_dtype", ["float32", "bfloat16"])
def test_an_update_is_that_of_optax_and_a_skipped_one_changes_no_state(first_moment_dtype):
    rng = np.random.default_rng(0)
    shapes = {"a.kernel": (4, 3), "a.bias": (3,), "text.kernel": (2, 2)}
    params, *grads = (
        {
            name: jnp.asarray(rng.standard_normal(shape, np.float32))
            for name, shape in shapes.items()
        }
        for _ in range(4)
    )
    config = OptimConfig(
        weight_decay=0.1, warmup_steps=2, first_moment_dtype=first_moment_dtype, clip_norm=2.0
    )
    reference = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config),
            weight_decay=config.weight_decay,
            mu_dtype=first_moment_dtype,
            mask={name: len(shape) > 1 for name, shape in shapes.items()},
        ),
    )
    ours = optimizer(config, dict.fromkeys(shapes, True))
    state, expected_state = ours.init(params), reference.init(params)
    for grad in grads:
        broken = jax.tree.map(lambda x: x * jnp.nan, grad)
        _, skipped = ours.update(broken, state, params, finite=jnp.array(False))
        jax.tree.map(np.testing.assert_array_equal, skipped, state)
        updates, state = ours.update(grad, state, params, finite=jnp.array(True))
        expected, expected_state = reference.update(grad, expected_state, params)
        jax.tree.map(np.testing.assert_array_equal, updates, expected)
    for name in ("mu", "nu"):
        found = tree_get(state, name), tree_get(expected_state, name)
        jax.tree.map(np.testing.assert_array_equal, *found)


def test_the_compiled_update_copies_no_moments():
    params = {"a.kernel": jnp.ones((4, 3)), "b.kernel": jnp.ones((5, 6))}
    transform = optimizer(OptimConfig(), dict.fromkeys(params, True))

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        finite = jnp.isfinite(optax.global_norm(grads))
        updates, state = transform.update(grads, state, params, finite=finite)
        return select(finite, optax.apply_updates(params, updates), params), state

    text = step.lower(params, transform.init(params), params).compile().as_text()
    assert " fusion(" in text
    assert not [line for line in text.splitlines() if " copy(" in line and "f32[" in line]
