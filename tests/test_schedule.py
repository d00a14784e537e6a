"""Tables against the released code, and against independent derivations."""

import math
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glide_jax.config import DiffusionConfig
from glide_jax.diffusion.loop import Hooks, sample
from glide_jax.diffusion.parameterization import Velocity
from glide_jax.diffusion.samplers import SAMPLERS, sampler_plan
from glide_jax.diffusion.schedule import SCHEDULES, TERMINAL_ROOT, Schedule, betas, respace
from glide_jax.errors import UserError

GOLDEN = np.load(Path(__file__).parent / "golden" / "schedules.npz")
OURS = {
    "alphas_cumprod": "alpha_bar",
    "posterior_mean_coef1": "posterior_mean_x_0",
    "posterior_mean_coef2": "posterior_mean_x_t",
    "sqrt_recipm1_alphas_cumprod": "sqrt_recipm1_alpha_bar",
}
names = st.sampled_from(sorted(SCHEDULES))
step_counts = st.integers(21, 1500)


@pytest.mark.parametrize("key", GOLDEN.files)
def test_golden(key):
    *kind, name, which, table = key.split("/")
    schedule = (
        Schedule.create(name, 1000, which)
        if kind == ["respaced"]
        else Schedule.create(name, int(which))
    )
    np.testing.assert_allclose(
        getattr(schedule, OURS.get(table, table)), GOLDEN[key], rtol=1e-12, atol=0
    )


def reference_betas(name, T):
    """The papers' definitions, one step at a time, by other identities where possible."""
    if name == "linear":
        low, high = 0.1 / T, 20 / T
        return [low + (high - low) * i / (T - 1) for i in range(T)]
    angles = [(i / T + 0.008) / 1.008 * math.pi / 2 for i in range(T + 1)]
    # cos^2 a - cos^2 b = sin(a + b) sin(b - a)
    return [
        min(math.sin(a + b) * math.sin(b - a) / math.cos(a) ** 2, 0.999)
        for a, b in pairwise(angles)
    ]


def reference_tables(beta):
    """Posterior tables by Bayes: the precisions of q(x_{t-1} | x_0) and q(x_t | x_{t-1}) add up."""
    tables = {
        "alpha_bar": [],
        "posterior_variance": [],
        "posterior_mean_x_0": [],
        "posterior_mean_x_t": [],
    }
    alpha_bar = 1.0
    for i, b in enumerate(beta):
        prev, alpha_bar = alpha_bar, alpha_bar * (1 - b)
        tables["alpha_bar"].append(alpha_bar)
        if i == 0:  # x_{t-1} is x_0 itself
            variance, from_x_0, from_x_t = 0.0, 1.0, 0.0
        else:
            variance = 1 / (1 / (1 - prev) + (1 - b) / b)
            from_x_0 = variance * math.sqrt(prev) / (1 - prev)
            from_x_t = variance * math.sqrt(1 - b) / b
        tables["posterior_variance"].append(variance)
        tables["posterior_mean_x_0"].append(from_x_0)
        tables["posterior_mean_x_t"].append(from_x_t)
    return tables


@given(names, step_counts)
def test_betas_match_reference(name, T):
    np.testing.assert_allclose(betas(name, T), reference_betas(name, T), rtol=1e-9)


@settings(max_examples=40)
@given(names, step_counts, st.data())
def test_tables_match_reference(name, T, data):
    respacing = data.draw(st.none() | st.integers(1, T).map(str))
    schedule = Schedule.create(name, T, respacing)
    for table, expected in reference_tables(schedule.betas.tolist()).items():
        # 1 - alpha_bar starts near 1e-5: it has lost five digits whichever way it is computed.
        np.testing.assert_allclose(getattr(schedule, table), expected, rtol=1e-9, atol=1e-300)
    log_variance = schedule.posterior_log_variance_clipped
    np.testing.assert_allclose(np.exp(log_variance[1:]), schedule.posterior_variance[1:])
    assert np.isfinite(log_variance).all()
    np.testing.assert_array_equal(schedule.alpha_bar_prev[1:], schedule.alpha_bar[:-1])
    assert schedule.alpha_bar_prev[0] == 1
    signal = schedule.sqrt_recip_alpha_bar**-2
    np.testing.assert_allclose(signal, schedule.alpha_bar)
    np.testing.assert_allclose(schedule.sqrt_recipm1_alpha_bar**2 * signal, 1 - signal, rtol=1e-6)


def test_a_single_row_is_finite():
    schedule = Schedule.create("linear", 1000, "1")
    np.testing.assert_allclose(np.exp(schedule.posterior_log_variance_clipped), 1e-4)
    np.testing.assert_array_equal(schedule.posterior_mean_x_0, 1)


@given(names, step_counts)
def test_betas_are_variances_and_signal_only_falls(name, T):
    schedule = Schedule.create(name, T)
    assert ((schedule.betas > 0) & (schedule.betas < 1)).all()
    assert (np.diff(schedule.alpha_bar) < 0).all()
    assert 0 < schedule.alpha_bar[-1] < 0.01


@given(names, step_counts)
def test_respacing_to_all_steps_is_the_identity(name, T):
    whole, respaced = Schedule.create(name, T), Schedule.create(name, T, str(T))
    np.testing.assert_array_equal(respaced.timestep_map, np.arange(T))
    np.testing.assert_allclose(respaced.betas, whole.betas, rtol=1e-9)
    np.testing.assert_allclose(respaced.alpha_bar, whole.alpha_bar, rtol=1e-9)


@settings(max_examples=50)
@given(names, st.integers(60, 1500), st.data())
def test_respacing_keeps_alpha_bar(name, T, data):
    respacing = data.draw(st.sampled_from(["fast27", "ddim1", "ddim2", "7", "3,2,5", "1"]))
    respaced = Schedule.create(name, T, respacing)
    kept = Schedule.create(name, T).alpha_bar[respaced.timestep_map]
    np.testing.assert_allclose(respaced.alpha_bar, kept, rtol=1e-9)


@given(st.integers(1, 1500), st.data())
def test_sections_are_evenly_spaced(T, data):
    sections = data.draw(st.integers(1, min(T, 6)))
    bounds = [0]
    for i in range(sections):  # the remainder goes to the first sections
        bounds.append(bounds[-1] + T // sections + (1 if i < T % sections else 0))
    counts = [data.draw(st.integers(1, b - a)) for a, b in pairwise(bounds)]
    kept = respace(",".join(map(str, counts)), T).tolist()
    assert kept == sorted(set(kept)) and len(kept) == sum(counts)
    for a, b, count in zip(bounds[:-1], bounds[1:], counts, strict=True):
        section = [t for t in kept if a <= t < b]
        assert len(section) == count
        for i, t in enumerate(section):
            exact = a + (Fraction((b - a - 1) * i, count - 1) if count > 1 else 0)
            assert abs(t - exact) <= Fraction(1, 2) + Fraction(1, 10**9)


@example(21)
@given(st.integers(2, 1000))
def test_halves_are_rounded_as_in_the_released_code(count):
    """By a running sum. For 21 of 1000 steps, for one, exact halves would round to others."""
    position, expected = 0.0, []
    for _ in range(count):
        expected.append(round(position))
        position += 999 / (count - 1)
    assert respace(str(count), 1000).tolist() == expected


def test_respacings_by_hand():
    assert respace("3", 9).tolist() == [0, 4, 8]
    assert respace("2,3", 11).tolist() == [0, 5, 6, 8, 10]
    assert respace("ddim3", 9).tolist() == [0, 3, 6]
    assert respace("ddim1", 9).tolist() == [0]
    assert respace("fast27", 1000).tolist()[-2:] == [800, 997]


@given(names, st.integers(1, 60))
def test_karras_levels_are_the_nearest_there_are(name, count):
    """For distinct levels; against Eq. 5, arXiv 2206.00364, with powers by logarithms."""
    whole, kept = Schedule.create(name), Schedule.create(name, 1000, f"karras{count}").timestep_map
    sigma = np.sqrt((1 - whole.alpha_bar) / whole.alpha_bar)
    low, high = max(sigma[0], 0.002), min(sigma[-1], 80)
    for i, t in enumerate(kept[::-1]):
        share = i / (count - 1) if count > 1 else 0
        level = math.exp(7 * math.log((1 - share) * high ** (1 / 7) + share * low ** (1 / 7)))
        nearest = min(range(1000), key=lambda t: abs(sigma[t] - level))
        assert t == nearest or nearest in kept
    assert len(kept) == count and (np.diff(kept) > 0).all()
    assert sigma[kept[-1]] == pytest.approx(80, rel=0.05)
    assert count == 1 or kept[0] == 0


@settings(max_examples=20)
@given(names, st.integers(21, 300), st.data())
def test_karras_steps_are_distinct_however_many(name, T, data):
    count = data.draw(st.integers(1, T))
    kept = Schedule.create(name, T, f"karras{count}").timestep_map
    assert len(kept) == count and (np.diff(kept) > 0).all()
    assert kept[0] >= 0 and kept[-1] < T


def test_karras_steps_are_dense_at_low_noise():
    even, karras = (Schedule.create("squaredcos_cap_v2", 1000, n) for n in ("20", "karras20"))
    assert (np.diff(karras.timestep_map)[:3] < 30).all()
    assert (karras.sqrt_recipm1_alpha_bar < 1).sum() > (even.sqrt_recipm1_alpha_bar < 1).sum() - 5
    with pytest.raises(UserError, match="steps 'karras1001': cannot keep 1001 of 1000"):
        Schedule.create("linear", 1000, "karras1001")


@pytest.mark.parametrize("respacing", [None, "7", "karras7"])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_follows_every_setting_of_its_run(name, zero_terminal_snr, respacing):
    config = DiffusionConfig(name, 500, "v", zero_terminal_snr)
    ours = Schedule.of(config, respacing)
    expected = Schedule.create(name, 500, respacing, zero_terminal_snr)
    np.testing.assert_array_equal(ours.betas, expected.betas)
    np.testing.assert_array_equal(ours.timestep_map, expected.timestep_map)


@given(names, st.integers(1, 40))
def test_first_rows_keep_their_noise(name, rows):
    schedule = Schedule.create(name, 1000, "40")
    part = schedule.first(rows)
    assert part.steps == rows
    np.testing.assert_array_equal(part.alpha_bar, schedule.alpha_bar[:rows])
    np.testing.assert_array_equal(part.timestep_map, schedule.timestep_map[:rows])


@settings(max_examples=40)
@given(names, step_counts)
def test_zero_terminal_snr_is_algorithm_1(name, T):
    """Step by step as in the paper, with TERMINAL_ROOT for its 0: no row differs by more."""
    roots = np.sqrt(Schedule.create(name, T).alpha_bar).tolist()
    first, last = roots[0], roots[-1]
    expected = []
    for root in roots:
        root -= last
        root *= first / (first - last)
        expected.append(root)
    schedule = Schedule.create(name, T, zero_terminal_snr=True)
    ours = np.sqrt(schedule.alpha_bar)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=TERMINAL_ROOT * (1 + 1e-9))
    np.testing.assert_allclose(ours[0], first, rtol=1e-12)
    assert 0 < ours[-1] <= TERMINAL_ROOT * (1 + 1e-9)
    assert (np.diff(ours) < 0).all()
    assert ((schedule.betas > 0) & (schedule.betas < 1)).all()


@settings(max_examples=20)
@given(names, step_counts, st.data())
def test_zero_terminal_snr_leaves_all_tables_finite(name, T, data):
    """In float32, as they are used, and with every kind of respacing."""
    respacing = data.draw(st.sampled_from(["1", "2", "20", "ddim1", "karras7"]) | st.just(str(T)))
    schedule = Schedule.create(name, T, respacing, zero_terminal_snr=True)
    tables = [
        schedule.alpha_bar, schedule.alpha_bar_prev, schedule.sqrt_recip_alpha_bar,
        schedule.sqrt_recipm1_alpha_bar, schedule.posterior_mean_x_0, schedule.posterior_mean_x_t,
        schedule.posterior_variance, schedule.posterior_log_variance_clipped, schedule.betas,
        1 / schedule.alpha_bar, np.log(schedule.betas),
    ]  # fmt: skip
    assert all(np.isfinite(table.astype(np.float32)).all() for table in tables)
    assert (schedule.alpha_bar.astype(np.float32) > 0).all()
    whole = Schedule.create(name, T, zero_terminal_snr=True).alpha_bar
    np.testing.assert_allclose(schedule.alpha_bar, whole[schedule.timestep_map], rtol=1e-6)


def test_a_schedule_that_ends_in_noise_is_unchanged():
    ours, own = (Schedule.create("squaredcos_cap_v2", 1000, None, zero) for zero in (True, False))
    np.testing.assert_allclose(ours.alpha_bar, own.alpha_bar, rtol=1e-7)
    with pytest.raises(UserError, match="zero_terminal_snr"):
        Schedule.create("squaredcos_cap_v2", 1, zero_terminal_snr=True)


def test_respacings_that_keep_the_last_step():
    """See `Schedule.create`: some respacings keep step T-1, others do not."""
    last = {
        respacing: Schedule.create("linear", 1000, respacing, True).timestep_map[-1]
        for respacing in ("2", "50", "100", "10,10,3,2,2", "ddim50", "fast27", "karras20")
    }
    assert [last[respacing] for respacing in ("2", "50", "100", "10,10,3,2,2")] == [999] * 4
    assert last["ddim50"] == 980 and last["fast27"] == 997 and last["karras20"] < 999


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("respacing", ["2", "12"])
def test_samplers_recover_x_0_from_nothing_but_noise(name, sampler, respacing):
    """With the exact velocity of a data set of x_0 alone."""
    rng = np.random.default_rng(0)
    x_0 = jnp.asarray(rng.uniform(-1, 1, (2, 6, 5, 3)), jnp.float32)
    x_T = jnp.asarray(rng.normal(size=x_0.shape), jnp.float32)
    whole = Schedule.create(name, 1000, zero_terminal_snr=True)
    schedule = Schedule.create(name, 1000, respacing, zero_terminal_snr=True)
    assert schedule.timestep_map[-1] == 999
    tables = [np.sqrt(whole.alpha_bar), np.sqrt(1 - whole.alpha_bar)]
    signal, noise = (jnp.asarray(table, jnp.float32) for table in tables)

    def network(x_t, t):
        at, of_noise = (table[t][:, None, None, None] for table in (signal, noise))
        v = at * (x_t - at * x_0) / of_noise - of_noise * x_0
        return jnp.concatenate([v, -jnp.ones_like(v)], axis=-1)

    denoise = Velocity(whole).denoiser(network)
    plan = sampler_plan(sampler, schedule)
    out = sample(denoise, plan, x_T, lambda k: x_T, Hooks(threshold=None))
    # At the last step float32 resolves x_0 to 1e-3; later steps correct the error.
    np.testing.assert_allclose(out, x_0, atol=1e-3)


@pytest.mark.parametrize(
    "respacing",
    ["0", "5000", "abc", "", "-3", "1.5", "10,", "10,0", "600,600", "ddim", "ddim0", "ddim400",
     "ddimx", "fast", "ddim1001", "karras", "karras0", "karras2000", "karras5.5"],
)  # fmt: skip
def test_bad_respacing_is_named(respacing):
    with pytest.raises(UserError, match=f"^steps '{respacing}'"):
        Schedule.create("linear", 1000, respacing)


def test_bad_schedules_are_named():
    with pytest.raises(UserError, match="schedule 'cosine' is unknown: use linear or squared"):
        betas("cosine", 1000)
    with pytest.raises(UserError, match=r"steps \(20\) must be above 20"):
        betas("linear", 20)
    with pytest.raises(UserError, match=r"steps \(0\)"):
        betas("squaredcos_cap_v2", 0)
    with pytest.raises(UserError, match="steps 'fast27': cannot keep 10 of 8"):
        respace("fast27", 40)
