"""A plan cut into runs of a compiled program."""

import jax
import numpy as np
import pytest

from glide_jax.config import SampleConfig
from glide_jax.diffusion.loop import Calls
from glide_jax.diffusion.samplers import SAMPLERS, sampler_plan
from glide_jax.diffusion.schedule import Schedule
from glide_jax.sampling.chunks import CHUNK_CALLS, Values, chunks


def cut(sampler="ddpm", steps="27", **settings):
    settings = SampleConfig(sampler=sampler, steps=steps, **settings)
    schedule = Schedule.create("squaredcos_cap_v2", 1000, steps)
    plan = sampler_plan(sampler, schedule, settings.eta)
    return plan, chunks(plan, settings)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", ["1", "4", "27", "250"])
def test_chunks_hold_every_call_once_in_tables_of_one_length(sampler, steps):
    plan, parts = cut(sampler, steps, guidance_interval=(200, 700))
    assert {len(table) for part in parts for table in jax.tree.leaves(part.table)} == {CHUNK_CALLS}
    made = [jax.tree.map(lambda x, part=part: x[: part.calls], part.table) for part in parts]
    jax.tree.map(
        lambda whole, *pieces: np.testing.assert_array_equal(np.concatenate(pieces), whole),
        Calls.of(plan),
        *made,
    )
    assert 0 < max(part.calls for part in parts) <= -(-plan.calls // 10)
    assert {x.dtype for x in jax.tree.leaves(parts[0].table)} == {np.dtype("i4"), np.dtype("f4")}


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_chunks_are_guided_exactly_at_the_ts_of_the_interval(sampler):
    """Ends included; Heun's second call belongs to the t of its own x_t."""
    plan, _ = cut(sampler)
    t = plan.schedule.timestep_map[plan.rows]
    low, high = (int(plan.schedule.timestep_map[row]) for row in (5, 20))
    _, parts = cut(sampler, guidance_interval=(low, high))
    guided = np.concatenate([[part.recipe.guided] * part.calls for part in parts])
    np.testing.assert_array_equal(guided, (low <= t) & (t <= high))
    _, unguided = cut(sampler, guidance_interval=(low, high), guidance_scale=1.0)
    assert not any(part.recipe.guided for part in unguided)


def test_recipes_depend_on_no_value():
    """Plans of a sampler are equal to the compiler, except for DDIM with and without noise."""
    for sampler in SAMPLERS:
        recipes = {
            part.recipe
            for steps, scale, threshold in (("27", 3.0, 0.9), ("100", 7.0, 0.99))
            for part in cut(sampler, steps, guidance_scale=scale, dynamic_threshold=threshold)[1]
        }
        assert len(recipes) == 1
    noisy = {cut("ddim", eta=eta)[1][0].recipe for eta in (0.0, 0.5, 1.0)}
    assert len(noisy) == 2


def test_values_of_a_schedules_last_row():
    plan, _ = cut()
    values = Values.of(SampleConfig(temperature=0.5, low_res_noise=7), plan.schedule.first(9))
    assert values.start_alpha == np.float32(np.sqrt(plan.schedule.alpha_bar[8]))
    assert values.start_alpha**2 + values.start_noise**2 == pytest.approx(1)
    assert (values.temperature, values.low_res_noise) == (0.5, 7)
