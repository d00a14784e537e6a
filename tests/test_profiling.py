import dataclasses

import jax
import jax.numpy as jnp
import pytest
from helpers import tiny

from glide_jax.errors import UserError
from glide_jax.parallel import sharding
from glide_jax.training.build import make_objective
from glide_jax.training.logging import health_line
from glide_jax.training.profiling import Profile, ProfileFlags, memory_report
from glide_jax.training.step import Trainer


def test_a_profile_holds_the_requested_steps(tmp_path):
    profile = Profile.of(ProfileFlags(profile="2:4"))
    written = []
    for _ in range(6):
        written.append(profile.before_step(tmp_path))
        jnp.ones(3).block_until_ready()
    assert written == [False] * 4 + [True, False]
    assert list(tmp_path.rglob("*.xplane.pb"))
    assert not profile.end()


def test_a_run_that_ends_early_ends_its_profile(tmp_path):
    profile = Profile.of(ProfileFlags(profile="0:100"))
    profile.before_step(tmp_path)
    assert profile.end()
    assert list(tmp_path.rglob("*.xplane.pb"))


@pytest.mark.parametrize("text", ["10", "5:5", "9:3", "a:b", "-1:3", ""])
def test_invalid_step_ranges_are_refused(text):
    with pytest.raises(UserError, match="10:15"):
        Profile.of(ProfileFlags(profile=text))


def test_by_default_no_step_is_profiled(tmp_path):
    profile = Profile.of(ProfileFlags())
    assert [profile.before_step(tmp_path) for _ in range(3)] == [False] * 3
    assert not list(tmp_path.iterdir())


def test_memory_is_reported_by_kind(monkeypatch):
    monkeypatch.setattr(sharding, "FSDP_MIN_SIZE", 64)
    config = tiny.get_config()
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, fsdp=8))
    mesh = sharding.make_mesh(config)
    trainer = Trainer(config, make_objective(config), mesh)
    state, shardings = trainer.abstract_state, trainer.state_shardings
    own = sum(
        x.addressable_shards[0].data.nbytes
        for x in jax.device_put(trainer.network.init(seed=0), shardings.params).values()
    )
    total = sum(x.size * 4 for x in state.params.values())
    assert total / 8 < own < total / 4  # the smallest are replicated
    assert sharding.bytes_a_device(state.params, shardings.params) == own
    # Two moments, and optax's counters.
    optimizer = sharding.bytes_a_device(state.opt_state, shardings.opt_state)
    assert 2 * own <= optimizer <= 2 * own + 16
    assert "parameters 0.00, EMA 0.00, optimizer 0.00" in memory_report(trainer)


def test_the_health_line_has_the_known_values():
    values = {"loss": 0.5, "grad_norm": 2.0, "skipped": 1.0}
    assert health_line(values) == "loss 0.5000, |grad| 2, 1 skipped"
    values |= {"step_s": 0.25, "images_per_s": 8192.0, "mfu": 0.456, "loader_wait_fraction": 0.01}
    expected = "loss 0.5000, 0.25 s/step, 8,192 images/s, MFU 45.6%, loader 1%, |grad| 2, 1 skipped"
    assert health_line(values) == expected
