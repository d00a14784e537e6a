"""The train state and one step of training."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from glide_jax.config import Config
from glide_jax.diffusion.loss import HybridLoss, hybrid_loss, velocity_weights
from glide_jax.diffusion.process import denoiser_of_velocity
from glide_jax.diffusion.schedule import Schedule
from glide_jax.models.glide import GlideModel
from glide_jax.models.network import Network
from glide_jax.shapes import Batch, Denoiser, Params
from glide_jax.training import sharding
from glide_jax.training.optim import ema_decay, ema_update, optimizer

Leaf = Any
"""An array, its ShapeDtypeStruct or its sharding."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that training changes. Randomness is a function of the seed and the step.

    The same tree with shapes or shardings for its leaves says what the arrays are and where.
    """

    step: Leaf
    """Steps taken, skipped ones included; () int32, as the other two counters."""
    params: dict[str, Leaf]
    ema: dict[str, Leaf]
    """Moving average of the parameters: what is sampled from."""
    opt_state: Any
    skipped: Leaf
    """Steps whose loss or gradient was not finite and that changed nothing."""
    skipped_in_a_row: Leaf


class Metrics(NamedTuple):
    """Of one step, all scalars."""

    loss: Float[Array, ""]
    mse: Float[Array, ""]
    vb: Float[Array, ""]
    grad_norm: Float[Array, ""]
    """Global norm of the gradient before clipping."""
    skipped: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]


class Trainer:
    """The jitted functions of a run, sharded over a mesh.

    Args:
        config: the run.
        network: what is trained.
        mesh: from `sharding.make_mesh`.
    """

    def __init__(self, config: Config, network: Network[GlideModel], mesh: Mesh) -> None:
        self.config = config
        self.network = network
        self.schedule = Schedule.create(config.diffusion.schedule, config.diffusion.steps)
        self.optimizer = optimizer(config.optim)

        self.abstract_state = jax.eval_shape(self._initial_state, network.shapes)
        self.state_shardings = sharding.infer(self.abstract_state, mesh)
        batch = sharding.batch_sharding(mesh)
        replicated = sharding.replicated(mesh)
        self.step = jax.jit(
            self._step,
            in_shardings=(self.state_shardings, batch),
            out_shardings=(self.state_shardings, replicated),
            donate_argnums=0,
        )
        """`(state, batch) -> (state, metrics)`; the old state's memory is used for the new one."""
        self.validate = jax.jit(
            self._validate, in_shardings=(self.state_shardings.ema, batch), out_shardings=replicated
        )
        """`(params, batch) -> mean HybridLoss`, always with the same noise for the same batch."""

    def init(self) -> TrainState:
        """The state before the first step."""
        shardings = self.state_shardings.params
        params: Params = {
            name: jax.make_array_from_callback(value.shape, shardings[name], value.__getitem__)
            for name, value in self.network.init(self.config.train.seed).items()
        }
        return jax.device_put(self._initial_state(params), self.state_shardings)

    def _initial_state(self, params: Params) -> TrainState:
        zeros = (jnp.int32(0) for _ in range(3))
        # A copy: the step gives its state's memory away, and no buffer can be given away twice.
        ema = jax.tree.map(jnp.copy, params)
        return TrainState(next(zeros), params, ema, self.optimizer.init(params), *zeros)

    def _losses(self, params: Params, batch: Batch, draws: "_Draws") -> HybridLoss:
        model = self.network.bind(params)
        text = model.encode_text(batch["tokens"], batch["token_mask"])

        def network(x_t: jax.Array, t: jax.Array) -> jax.Array:
            return model(x_t, t, text, key=draws.dropout_key)

        denoise: Denoiser = network
        weights = None
        if self.config.diffusion.prediction == "v":
            denoise = denoiser_of_velocity(self.schedule, network)
            weights = velocity_weights(self.schedule)
        return hybrid_loss(self.schedule, denoise, batch["image"], draws.t, draws.eps, weights)

    def _draw(self, key: PRNGKeyArray, batch: Batch, dropout: bool) -> "_Draws":
        t_key, eps_key, dropout_key = jax.random.split(key, 3)
        image = batch["image"]
        t = jax.random.randint(t_key, image.shape[:1], 0, self.schedule.steps)
        if self.config.diffusion.timesteps == "rising":  # the larger of two: P(t) = (2t + 1) / T^2
            other_key = jax.random.fold_in(t_key, 1)
            t = jnp.maximum(t, jax.random.randint(other_key, t.shape, 0, self.schedule.steps))
        eps = jax.random.normal(eps_key, image.shape)
        return _Draws(t, eps, dropout_key if dropout else None)

    def gradient(
        self, params: Params, batch: Batch, step: Int[Array, ""]
    ) -> tuple[Params, HybridLoss]:
        """Gradient of the mean loss, and the mean losses, with the random draws of this step."""
        key = jax.random.fold_in(jax.random.key(self.config.train.seed), step)
        draws = self._draw(key, batch, dropout=self.config.denoiser.unet.dropout > 0)

        def loss(params: Params, batch: Batch, draws: _Draws) -> tuple[jax.Array, HybridLoss]:
            means = HybridLoss(*map(jnp.mean, self._losses(params, batch, draws)))
            return means.loss, means

        parts = self.config.train.micro_batches
        return _accumulate(jax.grad(loss, has_aux=True), params, batch, draws, parts)

    def _step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        grads, losses = self.gradient(state.params, batch, state.step)
        grad_norm = optax.global_norm(grads)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay(self.config.optim, state.step)
        new = replace(
            state, params=params, opt_state=opt_state, ema=ema_update(state.ema, params, decay)
        )

        finite = jnp.isfinite(losses.loss) & jnp.isfinite(grad_norm)
        new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
        new = replace(
            new,
            step=state.step + 1,
            skipped=state.skipped + ~finite,
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        )
        return new, Metrics(*losses, grad_norm, new.skipped, new.skipped_in_a_row)

    def _validate(self, params: Params, batch: Batch) -> HybridLoss:
        draws = self._draw(jax.random.key(0), batch, dropout=False)
        return HybridLoss(*map(jnp.mean, self._losses(params, batch, draws)))


class _Draws(NamedTuple):
    """What a step draws at random, for the whole batch: micro-batches change nothing about it."""

    t: Int[Array, "b"]
    eps: Float[Array, "b h w c"]
    dropout_key: PRNGKeyArray | None


def _accumulate(
    gradient: Any, params: Params, batch: Batch, draws: _Draws, parts: int
) -> tuple[Params, HybridLoss]:
    """The mean of a gradient and its losses over equal parts of the batch, one after the other."""
    if parts == 1:
        return gradient(params, batch, draws)

    def split(x: jax.Array) -> jax.Array:  # interleaved: every device keeps its own examples
        return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

    def body(total: Any, part: Any) -> tuple[Any, None]:
        i, batch, t, eps = part
        key = draws.dropout_key
        key = None if key is None else jax.random.fold_in(key, i)
        return jax.tree.map(jnp.add, total, gradient(params, batch, _Draws(t, eps, key))), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    total, _ = jax.lax.scan(
        body,
        (zeros, HybridLoss(*[jnp.float32(0)] * 3)),
        (jnp.arange(parts), jax.tree.map(split, batch), split(draws.t), split(draws.eps)),
    )
    return jax.tree.map(lambda x: x / parts, total)
