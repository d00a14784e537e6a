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


def test_a_trace_holds_the_steps_that_were_asked_for(tmp_path):
    profile = Profile.of(ProfileFlags(profile="2:4"))
    said = []
    for _ in range(6):
        said.append(profile.before_step(tmp_path))
        jnp.ones(3).block_until_ready()
    assert [bool(line) for line in said] == [False] * 4 + [True, False]
    assert str(tmp_path) in said[4]
    assert list(tmp_path.rglob("*.xplane.pb"))
    assert profile.end(tmp_path) == ""


def test_a_run_that_ends_early_ends_its_trace(tmp_path):
    profile = Profile.of(ProfileFlags(profile="0:100"))
    profile.before_step(tmp_path)
    assert "wrote a trace" in profile.end(tmp_path)
    assert list(tmp_path.rglob("*.xplane.pb"))


@pytest.mark.parametrize("text", ["10", "5:5", "9:3", "a:b", "-1:3"])
def test_steps_that_are_none_are_refused(text):
    with pytest.raises(UserError, match="10:15"):
        Profile.of(ProfileFlags(profile=text))


def test_nothing_is_traced_unless_asked(tmp_path):
    profile = Profile.of(ProfileFlags())
    assert [profile.before_step(tmp_path) for _ in range(3)] == [""] * 3
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
    whole = sum(x.size * 4 for x in state.params.values())
    assert whole / 8 < own < whole / 4  # the smallest are repeated
    assert sharding.bytes_a_device(state.params, shardings.params) == own
    # Two moments, and optax's counters.
    optimizer = sharding.bytes_a_device(state.opt_state, shardings.opt_state)
    assert 2 * own <= optimizer <= 2 * own + 16
    assert "parameters 0.00, moving average 0.00, optimizer 0.00" in memory_report(trainer)


def test_health_tells_what_is_known():
    values = {"loss": 0.5, "grad_norm": 2.0, "skipped": 1.0}
    assert health_line(values) == "loss 0.5000, |grad| 2, 1 skipped"
    values |= {"step_s": 0.25, "images_per_s": 8192.0, "mfu": 0.456, "loader_wait_share": 0.01}
    expected = "loss 0.5000, 0.25 s/step, 8,192 images/s, MFU 45.6%, loader 1%, |grad| 2, 1 skipped"
    assert health_line(values) == expected
