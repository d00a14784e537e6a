"""Error of every sampler by number of steps, on data with a known exact solution.

    python benchmarks/samplers.py
    python benchmarks/samplers.py --schedule linear

The data are independent pixels from a mixture of two normal distributions, which has a closed-form
denoiser. Sampling starts from 65,536 evenly spaced quantiles of the normal distribution. The error
is the mean distance between the sorted samples and the quantiles of the mixture (Wasserstein-1).
For samplers without noise it is also the distance of each pixel from its exact solution.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr, ndtri

from glide_jax.diffusion.loop import sample
from glide_jax.diffusion.samplers import SAMPLERS, sampler_plan
from glide_jax.diffusion.schedule import SCHEDULES, Schedule
from glide_jax.shapes import Denoiser

WEIGHTS, MEANS, STDS = np.array([0.3, 0.7]), np.array([-0.5, 0.4]), np.array([0.1, 0.15])
SIDE = 256
STEPS = (5, 10, 20, 50, 100)


def gaussian_mixture(
    schedule: Schedule, weights: np.ndarray, means: np.ndarray, stds: np.ndarray
) -> Denoiser:
    """The exact denoiser of independent pixels from a mixture of normal distributions.

    x_t is a mixture too, with means sqrt(alpha_bar) m and variances alpha_bar s^2 + 1 - alpha_bar,
    so E[eps | x_t] and Var[x_0 | x_t] are known. The variance fraction v gives the exact variance
    of x_{t-1} given x_t, beta~ + (x_0's coefficient)^2 Var[x_0 | x_t].
    """
    row_of = np.zeros(schedule.timestep_map[-1] + 1, np.int32)
    row_of[schedule.timestep_map] = np.arange(schedule.steps)
    tables = {
        "alpha_bar": schedule.alpha_bar,
        "noise": 1 - schedule.alpha_bar,
        "floor": schedule.posterior_variance,
        "x_0": schedule.posterior_mean_x_0,
        "low": schedule.posterior_log_variance_clipped,
        "high": np.log(schedule.betas),
    }
    w, m, s = (jnp.asarray(values, jnp.float32) for values in (weights, means, stds))

    def denoise(x_t: jax.Array, t: jax.Array) -> jax.Array:
        row = jnp.asarray(row_of)[t]
        at = {
            name: jnp.asarray(table, jnp.float32)[row][:, None, None, None, None]
            for name, table in tables.items()
        }
        root = jnp.sqrt(at["alpha_bar"])
        variance = at["alpha_bar"] * s**2 + at["noise"]
        off = x_t[..., None] - root * m
        share = jax.nn.softmax(jnp.log(w) - 0.5 * (off**2 / variance + jnp.log(variance)))
        eps = (share * jnp.sqrt(at["noise"]) * off / variance).sum(-1)
        x_0_each = m + root * s**2 / variance * off
        x_0 = (share * x_0_each).sum(-1, keepdims=True)
        spread = share * (s**2 * at["noise"] / variance + (x_0_each - x_0) ** 2)
        best = at["floor"] + at["x_0"] ** 2 * spread.sum(-1, keepdims=True)
        width = at["high"] - at["low"]
        v = 2 * (jnp.log(best) - at["low"]) / jnp.where(width > 0, width, 1) - 1
        return jnp.concatenate([eps, v[..., 0]], axis=-1)

    return denoise


def quantiles(probabilities: np.ndarray) -> np.ndarray:
    """Quantiles of the mixture, by bisection."""
    low, high = np.full_like(probabilities, -2), np.full_like(probabilities, 2)
    for _ in range(50):
        middle = (low + high) / 2
        below = ndtr((middle[:, None] - MEANS) / STDS) @ WEIGHTS < probabilities
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return low


def error(sampler: str, schedule: Schedule) -> float:
    """Mean distance of the sorted samples from the quantiles of the mixture."""
    probabilities = (np.arange(SIDE**2) + 0.5) / SIDE**2
    key, shape = jax.random.key(0), (1, SIDE, SIDE, 1)
    order = np.random.default_rng(0).permutation(SIDE**2)
    x_0 = sample(
        gaussian_mixture(schedule, WEIGHTS, MEANS, STDS),
        sampler_plan(sampler, schedule),
        jnp.asarray(ndtri(probabilities)[order].reshape(shape), jnp.float32),
        lambda k: jax.random.normal(jax.random.fold_in(key, k), shape),
    )
    return float(np.abs(np.sort(np.ravel(x_0)) - quantiles(probabilities)).mean())


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schedule", choices=SCHEDULES, default="squaredcos_cap_v2")
    name = parser.parse_args().schedule
    print("| sampler | spacing |", *(f"{steps} steps |" for steps in STEPS))
    print("| --- | --- |", *("---: |" for _ in STEPS))
    for sampler in SAMPLERS:
        for spacing, prefix in (("even", ""), ("Karras", "karras")):
            schedules = [Schedule.create(name, 1000, f"{prefix}{steps}") for steps in STEPS]
            errors = [error(sampler, schedule) for schedule in schedules]
            print(f"| {sampler} | {spacing} |", *(f"{value:.4f} |" for value in errors), flush=True)


if __name__ == "__main__":
    main()
