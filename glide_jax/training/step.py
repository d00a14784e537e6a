"""The train state and one step of training."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from glide_jax.config import Config
from glide_jax.diffusion.timestep_sampling import LossHistory, update
from glide_jax.models.platform import Platform
from glide_jax.parallel import sharding
from glide_jax.runs.state import TrainState
from glide_jax.shapes import Batch, Params
from glide_jax.training.ema import ema_decay, ema_update
from glide_jax.training.objective import BatchGradient, Objective, Validation
from glide_jax.training.optim import learning_rate, optimizer, select


class Trainer:
    """The jitted functions of a run, sharded over a mesh.

    Args:
        config: the run.
        objective: the network and its loss.
        mesh: from `sharding.make_mesh`.
        platform: of the programs; that of the mesh's devices unless given.
    """

    def __init__(
        self,
        config: Config,
        objective: Objective,
        mesh: Mesh,
        platform: Platform | None = None,
    ) -> None:
        self.config = config
        self.network = objective.network
        self.timestep_count = objective.timestep_count
        """T."""
        self._objective = objective
        frozen_text = config.train.trainable == "unet"
        self._trained = {
            name: not (frozen_text and name.startswith("text.")) for name in self.network.shapes
        }
        self.optimizer = optimizer(config.optim, self._trained)

        self.abstract_state = jax.eval_shape(self._initial_state, self.network.shapes)
        self.state_shardings = sharding.infer(self.abstract_state, mesh)
        batch = sharding.batch_sharding(mesh)
        self._platform = platform or Platform.of(mesh, batch, training=True)
        replicated = sharding.replicated(mesh)
        frozen_shardings = sharding.infer(objective.frozen, mesh)
        frozen: Any = objective.frozen
        if not any(isinstance(x, jax.ShapeDtypeStruct) for x in frozen.values()):  # of a plan
            frozen = sharding.place(frozen, frozen_shardings)
        step = jax.jit(
            self._step,
            in_shardings=(frozen_shardings, self.state_shardings, batch),
            out_shardings=(self.state_shardings, replicated),
            donate_argnums=1,
            compiler_options=sharding.compiler_options(mesh),
        )
        self._program, self._frozen = step, frozen
        self.step = partial(step, frozen)
        """`(state, batch) -> (state, metrics)`; the old state is donated."""
        validate = jax.jit(
            self._validate,
            in_shardings=(frozen_shardings, self.state_shardings.ema, batch, None),
            out_shardings=batch,
        )
        self.validate = partial(validate, frozen)
        """`(params, batch, k) -> Validation` of the k-th batch; deterministic."""

    def lower(self, batch: Batch) -> jax.stages.Lowered:
        """The lowered step for batches of these shapes, ready to compile."""
        return self._program.lower(self._frozen, self.abstract_state, batch)

    def init(self, params: Mapping[str, np.ndarray] | None = None) -> TrainState:
        """The state before the first step.

        Args:
            params: initial parameters, on the host; the network's own unless given.
        """
        values = self.network.init(self.config.train.seed) if params is None else params
        placed = sharding.place(values, self.state_shardings.params)
        # One program: separate ones for all arrays would take long to compile.
        begin = jax.jit(self._initial_state, out_shardings=self.state_shardings, donate_argnums=0)
        return begin(placed)

    def _initial_state(self, params: Params) -> TrainState:
        # A copy: the step donates its state, and no buffer can be donated twice.
        ema = jax.tree.map(jnp.copy, params)
        history = None
        if self.config.diffusion.timesteps == "loss-second-moment":
            history = LossHistory.empty(self._objective.timestep_count)
        return TrainState(
            step=jnp.int32(0),
            params=params,
            ema=ema,
            opt_state=self.optimizer.init(params),
            skipped=jnp.int32(0),
            skipped_in_a_row=jnp.int32(0),
            history=history,
        )

    def gradient(self, frozen: Params, state: TrainState, batch: Batch) -> BatchGradient:
        """The gradient of a step, with the step's random numbers."""
        key = jax.random.fold_in(jax.random.key(self.config.train.seed), state.step)
        found = self._objective.gradient(
            state.params, frozen, batch, key, state.history, self._platform
        )
        # Unused gradients are not computed: a frozen text transformer has no backward pass.
        grads = {
            name: grad if self._trained[name] else jnp.zeros_like(grad)
            for name, grad in found.grads.items()
        }
        return found._replace(grads=grads)

    def _step(
        self, frozen: Params, state: TrainState, batch: Batch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One optimizer step; skipped where loss or gradient is not finite.

        Returns:
            The new state, and the metrics of the objective with
            grad_norm: global norm of the gradient before clipping;
            learning_rate: of this step: the optimizer has not counted the skipped ones;
            skipped, skipped_in_a_row: see `TrainState`.
        """
        found = self.gradient(frozen, state, batch)
        grad_norm = optax.global_norm(found.grads)
        finite = jnp.isfinite(found.metrics["loss"]) & jnp.isfinite(grad_norm)
        updates, opt_state = self.optimizer.update(
            found.grads, state.opt_state, state.params, finite=finite
        )
        params = self._objective.constrain(optax.apply_updates(state.params, updates))
        params = select(finite, params, state.params)
        ema = ema_update(state.ema, params, ema_decay(self.config.optim, state.step))
        history = state.history
        if history is not None:
            history = select(finite, update(history, found.t, found.losses), history)
        new = replace(
            state,
            params=params,
            opt_state=opt_state,
            ema=select(finite, ema, state.ema),
            history=history,
            step=state.step + 1,
            skipped=state.skipped + ~finite,
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        )
        return new, found.metrics | {
            "grad_norm": grad_norm,
            "learning_rate": learning_rate(self.config.optim)(state.step - state.skipped),
            "skipped": new.skipped,
            "skipped_in_a_row": new.skipped_in_a_row,
        }

    def _validate(
        self, frozen: Params, params: Params, batch: Batch, k: Int[Array, ""]
    ) -> Validation:
        key = jax.random.fold_in(jax.random.key(0), k)
        return self._objective.validate(params, frozen, batch, key, self._platform)
