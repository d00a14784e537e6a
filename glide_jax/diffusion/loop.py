"""The sampling loop: one `lax.scan` from noise to x_0 for every sampler, or parts of it.

x has any shape: images (b, h, w, c), embeddings (b, d). Each call of the denoiser predicts eps, or
x_0. The loop computes x_0 from eps (see `process.x_0_from_eps`), applies threshold and hooks, and
the sampler's step, one of `samplers`, computes the next x_t. All coefficients come from tables, a
row a call.

To start from an image (SDEdit, arXiv 2108.01073), plan the schedule's `first` rows and noise the
image to the last of them.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from glide_jax.diffusion.process import split_output
from glide_jax.diffusion.samplers import Prediction, SamplerPlan, Solver, StepInput, inverse_ddim
from glide_jax.diffusion.schedule import Schedule
from glide_jax.errors import UserError
from glide_jax.shapes import Denoiser

Noise = Callable[[jax.Array], jax.Array]
"""`k -> (b, *x)`: standard normal noise for step k, from 0 in the order taken; k is traced."""
OnX0 = Callable[[jax.Array], jax.Array]
"""A change to each predicted x_0, (b, *x) to the same; for example, known pixels restored."""
GuidanceGradient = Callable[[jax.Array, jax.Array], jax.Array]
"""`(x_t, t) -> (b, *x)`: gradient by x_t of a log probability; t: original step indices."""


Predicts = Literal["eps", "x_0"]
"""A denoiser's prediction. A network of x_0 is not converted to eps and back: at the noisiest step
of squaredcos_cap_v2, x_0 from eps is eps's rounding error times 20,000."""


def static_threshold(x_0: Float[Array, "b *x"]) -> Float[Array, "b *x"]:
    """Clips a predicted x_0 to [-1, 1]."""
    return jnp.clip(x_0, -1, 1)


def dynamic_threshold(percentile: float | Float[Array, ""]) -> OnX0:
    """Clip each image at a percentile of its own magnitudes and scale it into [-1, 1].

    Sec. 2.3, arXiv 2205.11487: s is the percentile of |x_0|, or 1 if that is more, and x_0 becomes
    clip(x_0, -s, s) / s. Strong guidance then saturates fewer pixels.

    Args:
        percentile: as a fraction, in [0, 1]; 0.995 is usual. May be traced.

    Raises:
        UserError: percentile out of range.
    """
    if not isinstance(percentile, jax.Array) and not 0 <= percentile <= 1:
        raise UserError(f"dynamic threshold ({percentile}) must be a fraction in [0, 1]")

    def threshold(x_0: jax.Array) -> jax.Array:
        axes = tuple(range(1, x_0.ndim))
        s = jnp.quantile(jnp.abs(x_0), percentile, axis=axes, keepdims=True)
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

    x_t: Float[Array, "b *x"]
    past: tuple[Prediction, ...]
    """The latest predictions, `Solver.history` of them."""


class Calls(NamedTuple):
    """Tables of denoiser calls, a row each, in order: what a compiled loop takes as arguments."""

    k: Int[Array, "e"]
    """Index of the call's step, for its noise."""
    t: Int[Array, "e"]
    """Original step index of x_t."""
    recip_alpha: Float[Array, "e"]
    """sqrt(1 / alpha_bar_t)."""
    sigma: Float[Array, "e"]
    """sqrt(1 / alpha_bar_t - 1)."""
    noise: Float[Array, "e"]
    """sqrt(1 - alpha_bar_t)."""
    step: dict[str, Float[Array, "e"]]
    """Coefficients of the solver's step."""

    @classmethod
    def of(cls, plan: SamplerPlan) -> "Calls":
        """All calls of a plan, int32 and float32, on the host."""
        schedule, rows = plan.schedule, plan.rows
        tables: dict[str, Any] = {
            "k": plan.step_of_call,
            "t": schedule.timestep_map[rows],
            "recip_alpha": schedule.sqrt_recip_alpha_bar[rows],
            "sigma": schedule.sqrt_recipm1_alpha_bar[rows],
            "noise": np.sqrt(1 - schedule.alpha_bar[rows]),
            "step": plan.coefficients,
        }
        return cls(
            **jax.tree.map(
                lambda x: x.astype(np.int32 if x.dtype.kind == "i" else np.float32), tables
            )
        )

    def part(self, first: int, count: int, length: int) -> "Calls":
        """`count` calls from `first` on, padded to `length` rows."""
        rows = np.minimum(np.arange(first, first + length), first + count - 1)
        return jax.tree.map(lambda x: x[rows], self)


def sample(
    denoise: Denoiser,
    plan: SamplerPlan,
    x_T: Float[Array, "b *x"],
    noise: Noise,
    hooks: Hooks = DEFAULT_HOOKS,
    *,
    predicts: Predicts = "eps",
) -> Float[Array, "b *x"]:
    """Sample images or embeddings.

    Args:
        denoise: `(x_t, t) -> [prediction | variance fraction]`; t is the original step index, also
            for a respaced schedule.
        plan: from `sampler_plan`.
        x_T: standard normal noise, or an image noised to the schedule's last row.
        noise: for each step; unused in the last, and by all but DDPM and DDIM with eta.
        hooks: changes to the predictions.
        predicts: of the denoiser.

    Returns:
        x_0; within the threshold, except for shifts by a gradient.
    """
    solver = plan.solver
    state = begin(x_T, solver.history)
    return advance(denoise, solver, state, Calls.of(plan), noise, hooks, predicts=predicts).x_t


def begin(x_T: Float[Array, "b *x"], history: int) -> State:
    """The state before the first call, for `advance`, with the solver's `history`."""
    nothing = jnp.zeros_like(x_T)
    return State(x_T, (Prediction(nothing, nothing),) * history)


def advance(
    denoise: Denoiser,
    solver: Solver,
    state: State,
    calls: Calls,
    noise: Noise,
    hooks: Hooks = DEFAULT_HOOKS,
    *,
    predicts: Predicts = "eps",
    count: int | Int[Array, ""] | None = None,
) -> State:
    """Run some of a plan's denoiser calls: `sample` in parts, with the host in between.

    Args:
        denoise, noise, hooks, predicts: as for `sample`.
        solver: of the plan.
        state: from `begin`, or from `advance` up to these calls.
        calls: their tables; may be traced, so that one program serves all parts of all plans.
        count: number of calls to run; all unless given. A traced one lets tables of a fixed length
            hold fewer calls: rows after them cost nothing.

    Returns:
        The state after these calls; after the last call of a plan its x_t is x_0.
    """
    body = _loop(denoise, solver, noise, hooks, predicts)
    table = jax.tree.map(jnp.asarray, calls)
    count = len(table.k) if count is None else count
    # A lax.scan if the count is static. Else a while loop rather than a scan of conditionals, out
    # of which the compiler would not move what does not depend on x_t.
    return jax.lax.fori_loop(
        0, count, lambda i, state: body(state, jax.tree.map(lambda x: x[i], table))[0], state
    )


def trajectory(
    denoise: Denoiser,
    plan: SamplerPlan,
    x_T: Float[Array, "b *x"],
    noise: Noise,
    hooks: Hooks = DEFAULT_HOOKS,
    *,
    predicts: Predicts = "eps",
) -> tuple[Float[Array, "s b *x"], Float[Array, "s b *x"]]:
    """`sample` with its steps: x_{t-1} and the predicted x_0 of each, first step first."""
    body = _loop(denoise, plan.solver, noise, hooks, predicts)

    def recorded(state: State, call: Calls) -> tuple[State, tuple[jax.Array, jax.Array]]:
        state, x_0 = body(state, call)
        return state, (state.x_t, x_0)

    calls, state = jax.tree.map(jnp.asarray, Calls.of(plan)), begin(x_T, plan.solver.history)
    _, (x, x_0) = jax.lax.scan(recorded, state, calls)  # (e, b, *x) each
    last_calls = np.flatnonzero(np.diff(plan.step_of_call, append=plan.schedule.steps))
    return x[last_calls], x_0[last_calls]


def invert(
    denoise: Denoiser, schedule: Schedule, x_0: Float[Array, "b *x"]
) -> Float[Array, "b *x"]:
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


def initial_noise(keys: Key[Array, "b"], shape: tuple[int, ...]) -> Float[Array, "b *x"]:
    """x_T of each image, from its own key: independent of the rest of the batch.

    Args:
        keys: a key for each image, as for `per_image_noise`.
        shape: of one example: (h, w, c) or (d,).

    Returns:
        Standard normal noise.
    """
    return _normal(keys, 0, shape)


def per_image_noise(keys: Key[Array, "b"], shape: tuple[int, ...]) -> Noise:
    """Noise of each image and step, from the image's own key: independent of the batch.

    Args:
        keys: a key for each image. `initial_noise` may use the same keys: the draws differ.
        shape: of one example: (h, w, c) or (d,).

    Returns:
        For `sample`'s `noise`.
    """
    return lambda k: _normal(keys, k + 1, shape)


def _normal(
    keys: Key[Array, "b"], index: int | Int[Array, ""], shape: tuple[int, ...]
) -> Float[Array, "b *x"]:
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)


def _loop(
    denoise: Denoiser, solver: Solver, noise: Noise, hooks: Hooks, predicts: Predicts
) -> Callable[[State, Calls], tuple[State, jax.Array]]:
    """The loop's body, `(state, one call) -> (state, x_0)`."""
    changes_x_0 = [change for change in (hooks.threshold, hooks.on_x_0) if change is not None]

    def body(state: State, call: Calls) -> tuple[State, jax.Array]:
        x_t, past = state
        t = jnp.full(x_t.shape[0], call.t)
        predicted, variance_fraction = split_output(denoise(x_t, t))  # (b, *x) each
        x_0, eps = predicted, predicted
        if predicts == "eps":
            x_0 = call.recip_alpha * x_t - call.sigma * eps
        for change in changes_x_0:
            x_0 = change(x_0)
        if changes_x_0 or predicts == "x_0":
            eps = (call.recip_alpha * x_t - x_0) / call.sigma
        shift = None if hooks.gradient is None else hooks.gradient(x_t, t)
        if shift is not None and not solver.shifts_mean:
            eps -= call.noise * shift
            x_0 = call.recip_alpha * x_t - call.sigma * eps
        fresh = noise(call.k) if solver.draws_noise else None
        at = StepInput(x_t, x_0, eps, variance_fraction, fresh, past, shift)
        past = (Prediction(x_0, eps), *past)[: solver.history]
        return State(solver.step(call.step, at), past), x_0

    return body
