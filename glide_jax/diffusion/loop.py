"""From noise to images: one loop for every sampler.

At each call of the denoiser the loop makes its eps a prediction of x_0, thresholds it and hands it
to hooks; the sampler's step, one of `steps`, says what the next x_t then is.

To start in the middle (SDEdit, arXiv 2108.01073), give the schedule's `first` rows and an image
noised to the last of them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from glide_jax.diffusion.process import eps_from_x_0, split_output, x_0_from_eps
from glide_jax.diffusion.samplers import SAMPLERS, Plan, Prediction, StepInput, inverse_ddim
from glide_jax.diffusion.schedule import Schedule
from glide_jax.errors import UserError
from glide_jax.shapes import Denoiser

Noise = Callable[[jax.Array], jax.Array]
"""`k -> (b, h, w, c)`: standard normal noise for the k-th step taken, k = 0 first; k is traced."""
OnX0 = Callable[[jax.Array], jax.Array]
"""A change to each predicted x_0, (b, h, w, c) to the same: known pixels put back, for example."""
Gradient = Callable[[jax.Array, jax.Array], jax.Array]
"""`(x_t, t) -> (b, h, w, c)`: the gradient by x_t of a log probability, t the original index."""


class State(NamedTuple):
    """What a sampler has when it has come so far: what one call of the denoiser hands on."""

    x_t: Float[Array, "b h w c"]
    past: tuple[Prediction, ...]
    """The latest predictions, as many as the sampler looks back at."""


def static_threshold(x_0: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Clips a predicted x_0 to [-1, 1]."""
    return jnp.clip(x_0, -1, 1)


def dynamic_threshold(percentile: float) -> OnX0:
    """Clips each image at a percentile of its own magnitudes and scales it into [-1, 1].

    Sec. 2.3, arXiv 2205.11487: s is the percentile of |x_0|, or 1 if that is more, and x_0 becomes
    clip(x_0, -s, s) / s. Strong guidance then does not saturate so many pixels.

    Args:
        percentile: as a fraction, in [0, 1]; 0.995 is usual.

    Raises:
        UserError: it is not.
    """
    if not 0 <= percentile <= 1:
        raise UserError(f"dynamic threshold ({percentile}) must be a fraction in [0, 1]")

    def threshold(x_0: jax.Array) -> jax.Array:
        s = jnp.quantile(jnp.abs(x_0), percentile, axis=(1, 2, 3), keepdims=True)
        s = jnp.maximum(s, 1)
        return jnp.clip(x_0, -s, s) / s

    return threshold


def sample(
    denoise: Denoiser,
    schedule: Schedule,
    x_T: Float[Array, "b h w c"],
    noise: Noise,
    *,
    sampler: str,
    eta: float = 0.0,
    threshold: OnX0 | None = static_threshold,
    on_x_0: OnX0 | None = None,
    gradient: Gradient | None = None,
) -> Float[Array, "b h w c"]:
    """Draws images.

    Args:
        denoise: given original step indices, also when the schedule is respaced.
        schedule: the steps to visit.
        x_T: where to start: standard normal noise, or an image noised to the last row.
        noise: for each step; not used at the last, and only by DDPM and DDIM with eta.
        sampler: a key of SAMPLERS.
        eta: see `ddim`; other samplers ignore it.
        threshold: keeps each predicted x_0 in range; None lets it be.
        on_x_0: changes each predicted x_0, after thresholding.
        gradient: guidance by a classifier or CLIP, see `guidance.classifier`. DDPM's mean is
            shifted by variance * gradient, eps of all others by -sqrt(1 - alpha_bar_t) * gradient
            (algorithms 1 and 2, arXiv 2105.05233), and x_0 with it, past threshold and hook.

    Returns:
        x_0; within the threshold, unless a gradient moved it.

    Raises:
        UserError: unknown sampler, or eta out of range.
    """
    state = begin(schedule, x_T, sampler=sampler, eta=eta)
    return advance(
        denoise,
        schedule,
        state,
        noise,
        sampler=sampler,
        eta=eta,
        threshold=threshold,
        on_x_0=on_x_0,
        gradient=gradient,
    ).x_t


def begin(
    schedule: Schedule, x_T: Float[Array, "b h w c"], *, sampler: str, eta: float = 0.0
) -> State:
    """The state before the first call: for `advance`, which draws in parts."""
    return _start(_plan(sampler, schedule, eta), x_T)


def denoiser_calls(schedule: Schedule, *, sampler: str, eta: float = 0.0) -> int:
    """How often a sampler calls the denoiser: as often as there are steps, or more often."""
    return len(_plan(sampler, schedule, eta).rows)


def advance(
    denoise: Denoiser,
    schedule: Schedule,
    state: State,
    noise: Noise,
    *,
    first: int | Int[Array, ""] = 0,
    calls: int | None = None,
    sampler: str,
    eta: float = 0.0,
    threshold: OnX0 | None = static_threshold,
    on_x_0: OnX0 | None = None,
    gradient: Gradient | None = None,
) -> State:
    """Takes some of the denoiser's calls: `sample` in parts, between which the host may look on.

    Args:
        state: from `begin`, or from `advance` as far as `first`.
        first: the first call to take, from 0; may be traced, so that one program serves all parts.
        calls: how many; all unless given.
        denoise, schedule, noise, sampler, eta, threshold, on_x_0, gradient: as for `sample`.

    Returns:
        The state after them; its x_t is x_0 if they were the last.
    """
    plan = _plan(sampler, schedule, eta)
    body, rows = _loop(denoise, schedule, noise, plan, threshold, on_x_0, gradient)
    if calls is not None:
        rows = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, calls), rows)
    state, _ = jax.lax.scan(lambda state, call: (body(state, call)[0], None), state, rows)
    return state


def trajectory(
    denoise: Denoiser,
    schedule: Schedule,
    x_T: Float[Array, "b h w c"],
    noise: Noise,
    *,
    sampler: str,
    eta: float = 0.0,
    threshold: OnX0 | None = static_threshold,
    on_x_0: OnX0 | None = None,
    gradient: Gradient | None = None,
) -> tuple[Float[Array, "s b h w c"], Float[Array, "s b h w c"]]:
    """As `sample`, but returns x_{t-1} and the predicted x_0 of every step, first step first."""
    plan = _plan(sampler, schedule, eta)
    body, calls = _loop(denoise, schedule, noise, plan, threshold, on_x_0, gradient)

    def recorded(state: State, call: _Call) -> tuple[State, tuple[jax.Array, jax.Array]]:
        state, x_0 = body(state, call)
        return state, (state.x_t, x_0)

    _, (x, x_0) = jax.lax.scan(recorded, _start(plan, x_T), calls)
    last_calls = np.flatnonzero(np.diff(plan.step_of_call, append=schedule.steps))
    return x[last_calls], x_0[last_calls]


def invert(
    denoise: Denoiser,
    schedule: Schedule,
    x_0: Float[Array, "b h w c"],
) -> Float[Array, "b h w c"]:
    """Encodes images: the x_T from which DDIM, with eta 0, draws them. See `inverse_ddim`.

    The more steps there are the closer DDIM comes back, with the same schedule and denoiser. A
    guided denoiser comes back less closely.

    Args:
        denoise: as for `sample`.
        schedule: the steps to visit, in the opposite order.
        x_0: images in [-1, 1].

    Returns:
        x_t at the schedule's last row.
    """
    plan = inverse_ddim(schedule)
    body, calls = _loop(denoise, schedule, jnp.zeros_like, plan, None, None, None)
    start = _start(plan, x_0)
    state, _ = jax.lax.scan(lambda state, call: (body(state, call)[0], None), start, calls)
    return state.x_t


def initial_noise(
    keys: Key[Array, "b"], shape: tuple[int, int, int]
) -> Float[Array, "b {shape[0]} {shape[1]} {shape[2]}"]:
    """x_T for each image from its own key, so that an image does not depend on its batch.

    Args:
        keys: a key for each image, as for `per_image_noise`.
        shape: (h, w, c).

    Returns:
        Standard normal noise.
    """
    return _normal(keys, 0, shape)


def per_image_noise(keys: Key[Array, "b"], shape: tuple[int, int, int]) -> Noise:
    """Noise for each image and step from the image's own key, whatever its batch.

    Args:
        keys: a key for each image; may be the same as for `initial_noise`, which draws from
            other parts of it.
        shape: (h, w, c).

    Returns:
        For `sample`'s `noise`.
    """
    return lambda k: _normal(keys, k + 1, shape)


def _normal(
    keys: Key[Array, "b"], index: int | Int[Array, ""], shape: tuple[int, int, int]
) -> Float[Array, "b {shape[0]} {shape[1]} {shape[2]}"]:
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)


class _Call(NamedTuple):
    """What changes from call to call: stacked over calls, then scanned."""

    k: jax.Array
    row: jax.Array
    t: jax.Array
    sqrt_1m_alpha_bar: jax.Array
    coefficients: dict[str, jax.Array]


def _plan(sampler: str, schedule: Schedule, eta: float) -> Plan:
    if sampler not in SAMPLERS:
        *names, last = SAMPLERS
        raise UserError(f"sampler '{sampler}' is unknown: use {', '.join(names)} or {last}")
    return SAMPLERS[sampler](schedule, eta)


def _loop(
    denoise: Denoiser,
    schedule: Schedule,
    noise: Noise,
    plan: Plan,
    threshold: OnX0 | None,
    on_x_0: OnX0 | None,
    gradient: Gradient | None,
) -> tuple[Callable[[State, _Call], tuple[State, jax.Array]], _Call]:
    """For a scan: its body `(state, call) -> (state, x_0)`, and the calls."""
    calls = _Call(
        k=jnp.asarray(plan.step_of_call, jnp.int32),
        row=jnp.asarray(plan.rows, jnp.int32),
        t=jnp.asarray(schedule.timestep_map[plan.rows], jnp.int32),
        sqrt_1m_alpha_bar=jnp.asarray(np.sqrt(1 - schedule.alpha_bar[plan.rows]), jnp.float32),
        coefficients={
            name: jnp.asarray(table, jnp.float32) for name, table in plan.coefficients.items()
        },
    )
    changes_x_0 = [change for change in (threshold, on_x_0) if change is not None]

    def body(state: State, call: _Call) -> tuple[State, jax.Array]:
        x_t, past = state
        b = x_t.shape[0]
        row, t = jnp.full(b, call.row), jnp.full(b, call.t)
        eps, v = split_output(denoise(x_t, t))
        x_0 = x_0_from_eps(schedule, x_t, row, eps)
        for change in changes_x_0:
            x_0 = change(x_0)
        if changes_x_0:
            eps = eps_from_x_0(schedule, x_t, row, x_0)
        shift = None if gradient is None else gradient(x_t, t)
        if shift is not None and not plan.shifts_mean:
            eps -= call.sqrt_1m_alpha_bar * shift
            x_0 = x_0_from_eps(schedule, x_t, row, eps)
        at = StepInput(row, x_t, x_0, eps, v, noise(call.k), past, shift)
        past = (Prediction(x_0, eps), *past)[: plan.history]
        return State(plan.step(call.coefficients, at), past), x_0

    return body, calls


def _start(plan: Plan, x_T: jax.Array) -> State:
    nothing = jnp.zeros_like(x_T)
    return State(x_T, (Prediction(nothing, nothing),) * plan.history)
