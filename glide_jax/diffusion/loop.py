"""The sampling loop: one `lax.scan` from noise to images for every sampler.

Each call of the denoiser predicts eps. The loop turns it into x_0, applies threshold and hooks, and
the sampler's step, one of `samplers`, computes the next x_t.

To start from an image (SDEdit, arXiv 2108.01073), plan the schedule's `first` rows and noise the
image to the last of them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from glide_jax.diffusion.process import eps_from_x_0, split_output, x_0_from_eps
from glide_jax.diffusion.samplers import Prediction, SamplerPlan, StepInput, inverse_ddim
from glide_jax.diffusion.schedule import Schedule
from glide_jax.errors import UserError
from glide_jax.shapes import Denoiser

Noise = Callable[[jax.Array], jax.Array]
"""`k -> (b, h, w, c)`: standard normal noise for step k, from 0 in the order taken; k is traced."""
OnX0 = Callable[[jax.Array], jax.Array]
"""A change to each predicted x_0, (b, h, w, c) to the same; for example, known pixels restored."""
GuidanceGradient = Callable[[jax.Array, jax.Array], jax.Array]
"""`(x_t, t) -> (b, h, w, c)`: gradient by x_t of a log probability; t: original step indices."""


def static_threshold(x_0: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Clips a predicted x_0 to [-1, 1]."""
    return jnp.clip(x_0, -1, 1)


def dynamic_threshold(percentile: float) -> OnX0:
    """Clip each image at a percentile of its own magnitudes and scale it into [-1, 1].

    Sec. 2.3, arXiv 2205.11487: s is the percentile of |x_0|, or 1 if that is more, and x_0 becomes
    clip(x_0, -s, s) / s. Strong guidance then saturates fewer pixels.

    Args:
        percentile: as a fraction, in [0, 1]; 0.995 is usual.

    Raises:
        UserError: percentile out of range.
    """
    if not 0 <= percentile <= 1:
        raise UserError(f"dynamic threshold ({percentile}) must be a fraction in [0, 1]")

    def threshold(x_0: jax.Array) -> jax.Array:
        s = jnp.quantile(jnp.abs(x_0), percentile, axis=(1, 2, 3), keepdims=True)
        s = jnp.maximum(s, 1)
        return jnp.clip(x_0, -s, s) / s

    return threshold


class Hooks(NamedTuple):
    """Changes to the loop's predictions."""

    threshold: OnX0 | None = static_threshold
    """Range limit of each predicted x_0; None is no limit."""
    on_x_0: OnX0 | None = None
    """Change to each predicted x_0, after the threshold."""
    gradient: GuidanceGradient | None = None
    """Guidance by a classifier or CLIP, see `guidance.classifier`. DDPM's mean is shifted by
    variance * gradient; eps of all other samplers by -sqrt(1 - alpha_bar_t) * gradient (algorithms
    1 and 2, arXiv 2105.05233), and x_0 with it, after threshold and on_x_0."""


DEFAULT_HOOKS = Hooks()


class State(NamedTuple):
    """The state of the loop between two calls of the denoiser."""

    x_t: Float[Array, "b h w c"]
    past: tuple[Prediction, ...]
    """The latest predictions, `SamplerPlan.history` of them."""


def sample(
    denoise: Denoiser,
    plan: SamplerPlan,
    x_T: Float[Array, "b h w c"],
    noise: Noise,
    hooks: Hooks = DEFAULT_HOOKS,
) -> Float[Array, "b h w c"]:
    """Sample images.

    Args:
        denoise: `(x_t, t) -> [eps | variance fraction]`; t is the original step index, also for a
            respaced schedule.
        plan: from `sampler_plan`.
        x_T: standard normal noise, or an image noised to the schedule's last row.
        noise: for each step; unused in the last, and by all but DDPM and DDIM with eta.
        hooks: changes to the predictions.

    Returns:
        x_0; within the threshold, except for shifts by a gradient.
    """
    return advance(denoise, plan, begin(plan, x_T), noise, hooks).x_t


def begin(plan: SamplerPlan, x_T: Float[Array, "b h w c"]) -> State:
    """The state before the first call, for `advance`."""
    nothing = jnp.zeros_like(x_T)
    return State(x_T, (Prediction(nothing, nothing),) * plan.history)


def advance(
    denoise: Denoiser,
    plan: SamplerPlan,
    state: State,
    noise: Noise,
    hooks: Hooks = DEFAULT_HOOKS,
    *,
    first: int | Int[Array, ""] = 0,
    calls: int | None = None,
) -> State:
    """Run some of the plan's denoiser calls: `sample` in parts, with the host in between.

    Args:
        denoise, plan, noise, hooks: as for `sample`.
        state: from `begin`, or from `advance` up to `first`.
        first: the first call to run, from 0; may be traced, so one program serves all parts.
        calls: number of calls; all unless given.

    Returns:
        The state after these calls; after the last call its x_t is x_0.
    """
    body, rows = _loop(denoise, plan, noise, hooks)
    if calls is not None:
        rows = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, calls), rows)
    state, _ = jax.lax.scan(lambda state, call: (body(state, call)[0], None), state, rows)
    return state


def trajectory(
    denoise: Denoiser,
    plan: SamplerPlan,
    x_T: Float[Array, "b h w c"],
    noise: Noise,
    hooks: Hooks = DEFAULT_HOOKS,
) -> tuple[Float[Array, "s b h w c"], Float[Array, "s b h w c"]]:
    """`sample` with its steps: x_{t-1} and the predicted x_0 of each, first step first."""
    body, calls = _loop(denoise, plan, noise, hooks)

    def recorded(state: State, call: _Call) -> tuple[State, tuple[jax.Array, jax.Array]]:
        state, x_0 = body(state, call)
        return state, (state.x_t, x_0)

    _, (x, x_0) = jax.lax.scan(recorded, begin(plan, x_T), calls)  # (e, b, h, w, c) each
    last_calls = np.flatnonzero(np.diff(plan.step_of_call, append=plan.schedule.steps))
    return x[last_calls], x_0[last_calls]


def invert(
    denoise: Denoiser, schedule: Schedule, x_0: Float[Array, "b h w c"]
) -> Float[Array, "b h w c"]:
    """Encode images: the x_T from which DDIM with eta 0 generates them. See `inverse_ddim`.

    With the same schedule and denoiser, DDIM reconstructs the images; the error falls with the
    number of steps and grows with guidance.

    Args:
        denoise: as for `sample`.
        schedule: the steps to visit, first to last.
        x_0: images in [-1, 1].

    Returns:
        x_t at the schedule's last row.
    """
    hooks = Hooks(threshold=None)
    return sample(denoise, inverse_ddim(schedule), x_0, jnp.zeros_like, hooks)


def initial_noise(
    keys: Key[Array, "b"], shape: tuple[int, int, int]
) -> Float[Array, "b {shape[0]} {shape[1]} {shape[2]}"]:
    """x_T of each image, from its own key: independent of the rest of the batch.

    Args:
        keys: a key for each image, as for `per_image_noise`.
        shape: (h, w, c).

    Returns:
        Standard normal noise.
    """
    return _normal(keys, 0, shape)


def per_image_noise(keys: Key[Array, "b"], shape: tuple[int, int, int]) -> Noise:
    """Noise of each image and step, from the image's own key: independent of the batch.

    Args:
        keys: a key for each image. `initial_noise` may use the same keys: the draws differ.
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
    """The scanned values: one row a call of the denoiser."""

    k: jax.Array
    row: jax.Array
    t: jax.Array
    sqrt_1m_alpha_bar: jax.Array
    coefficients: dict[str, jax.Array]


def _calls(plan: SamplerPlan) -> _Call:
    schedule = plan.schedule
    return _Call(
        k=jnp.asarray(plan.step_of_call, jnp.int32),
        row=jnp.asarray(plan.rows, jnp.int32),
        t=jnp.asarray(schedule.timestep_map[plan.rows], jnp.int32),
        sqrt_1m_alpha_bar=jnp.asarray(np.sqrt(1 - schedule.alpha_bar[plan.rows]), jnp.float32),
        coefficients={
            name: jnp.asarray(table, jnp.float32) for name, table in plan.coefficients.items()
        },
    )


def _loop(
    denoise: Denoiser, plan: SamplerPlan, noise: Noise, hooks: Hooks
) -> tuple[Callable[[State, _Call], tuple[State, jax.Array]], _Call]:
    """The scan's body, `(state, call) -> (state, x_0)`, and its calls."""
    schedule = plan.schedule
    changes_x_0 = [change for change in (hooks.threshold, hooks.on_x_0) if change is not None]

    def body(state: State, call: _Call) -> tuple[State, jax.Array]:
        x_t, past = state
        b = x_t.shape[0]
        row, t = jnp.full(b, call.row), jnp.full(b, call.t)
        eps, variance_fraction = split_output(denoise(x_t, t))  # (b, h, w, c) each
        x_0 = x_0_from_eps(schedule, x_t, row, eps)
        for change in changes_x_0:
            x_0 = change(x_0)
        if changes_x_0:
            eps = eps_from_x_0(schedule, x_t, row, x_0)
        shift = None if hooks.gradient is None else hooks.gradient(x_t, t)
        if shift is not None and not plan.shifts_mean:
            eps -= call.sqrt_1m_alpha_bar * shift
            x_0 = x_0_from_eps(schedule, x_t, row, eps)
        at = StepInput(row, x_t, x_0, eps, variance_fraction, noise(call.k), past, shift)
        past = (Prediction(x_0, eps), *past)[: plan.history]
        return State(plan.step(call.coefficients, at), past), x_0

    return body, _calls(plan)
