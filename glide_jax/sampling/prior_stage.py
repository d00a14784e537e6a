"""unCLIP's trained prior, ready to sample: from captions to CLIP image embeddings."""

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, UInt32

from glide_jax.config import Config, DiffusionConfig, PriorConfig, SampleConfig
from glide_jax.diffusion.guidance import classifier_free
from glide_jax.diffusion.loop import (
    Calls,
    Hooks,
    advance,
    begin,
    initial_noise,
    per_image_noise,
)
from glide_jax.diffusion.samplers import Solver, sampler_plan
from glide_jax.diffusion.schedule import Schedule
from glide_jax.errors import UserError
from glide_jax.models.ar_prior import EMPTY_TOKENS, ar_prior
from glide_jax.models.build import build_network
from glide_jax.models.platform import Platform
from glide_jax.models.prior import prior_network
from glide_jax.parallel.sharding import infer, local_mesh
from glide_jax.runs.folder import Run
from glide_jax.sampling.buckets import bucket, equal_part
from glide_jax.sampling.settings import require_usable
from glide_jax.shapes import Denoiser, Params, TextStates

MAX_BATCH = 64
"""Embeddings per call of the compiled program."""
PRIOR = 2**31 - 1
"""Folded into the key of a seed, so that its noise is not the decoder's."""


class PriorInputs(NamedTuple):
    """The arguments of the program with one row per embedding."""

    text: TextStates
    seeds: UInt32[Array, "b"]
    candidate: Int[Array, "b"]
    """Index among the candidates of one image: each has its own noise."""


class PriorStage:
    """A trained prior: parameters on devices and the compiled program.

    Args:
        config: of the run.
        params: usually the EMA parameters.
        fsdp: as for `Stage`.

    Raises:
        UserError: fsdp does not divide the number of devices.
    """

    def __init__(self, config: Config, params: Params, fsdp: int = 1) -> None:
        self.config = config
        mesh = local_mesh(fsdp)
        self._network = build_network(config.prior)
        stored = self._network.stored(params, Platform.of(mesh, None, training=False))
        self.params = jax.device_put(stored, infer(stored, mesh))
        self.program = prior_program(config.prior, config.diffusion, mesh)

    @classmethod
    def load(cls, run: Run, fsdp: int = 1) -> "PriorStage":
        """Loads a run's EMA parameters.

        Args:
            run: of a prior.
            fsdp: as of the class.

        Raises:
            UserError: the run is not a prior's, its weights do not match its config, or fsdp does
                not divide the devices.
        """
        _ = run.config.prior  # before the weights, which may be large
        return cls(run.config, run.weights(infer(run.network.shapes, local_mesh(fsdp))), fsdp)

    def sample(
        self,
        text: TextStates,
        empty: TextStates,
        seeds: list[int],
        settings: SampleConfig,
        *,
        candidates: int = 1,
    ) -> Float[np.ndarray, "b d"]:
        """Samples an image embedding for each caption.

        Args:
            text: b captions, from the CLIP; on the host.
            empty: the empty caption, one row: what guidance leads away from.
            seeds: b seeds. An embedding depends on its caption, its seed and the settings only.
            settings: the run's own, or `changed_settings` of them.
            candidates: embeddings sampled for each caption, of which the one with the highest dot
                product with the text embedding is kept (sec. 2.2, arXiv 2204.06125).

        Returns:
            The embeddings, in the CLIP's space.

        Raises:
            UserError: impossible settings.
        """
        require_usable(self.config, settings)
        shared, static = call_arguments(self.config, settings)
        row: Any = np.arange(len(seeds) * candidates, dtype=np.int32)
        rows = PriorInputs(
            text=jax.tree.map(lambda x: x[row // candidates], text),
            seeds=np.asarray(seeds, np.uint32)[row // candidates],
            candidate=row % candidates,
        )
        found = self._in_batches(rows, (empty, *shared), static)
        if not np.isfinite(found).all():
            raise UserError(
                "the prior gave numbers that are not finite: the weights are damaged, or a setting "
                "is extreme (guidance_scale, temperature)"
            )
        found = found.reshape(len(seeds), candidates, -1)
        best = np.einsum("bnd,bd->bn", found, np.asarray(text.embedding)).argmax(1)
        return found[np.arange(len(seeds)), best]

    def _in_batches(
        self, rows: PriorInputs, shared: tuple[Any, ...], static: dict[str, Any]
    ) -> Float[np.ndarray, "b d"]:
        """Embeddings of all rows; the last batch repeats the last row, to fit the program."""
        count = len(rows.seeds)
        size = min(bucket(equal_part(count, MAX_BATCH)), MAX_BATCH)
        parts = []
        for start in range(0, count, size):
            which = np.minimum(np.arange(start, start + size), count - 1)
            batch = jax.tree.map(lambda x, which=which: x[which], rows)
            parts.append(np.asarray(self.program(self.params, batch, *shared, **static)))
        return np.concatenate(parts)[:count]


def call_arguments(
    config: Config, settings: SampleConfig
) -> tuple[tuple[dict[str, np.ndarray], Calls, np.ndarray], dict[str, Any]]:
    """The arguments of `prior_program`'s program that all rows share.

    Returns:
        values, table and calls; and the static ones by name.
    """
    schedule = Schedule.of(config.diffusion, settings.steps)
    plan = sampler_plan(settings.sampler, schedule, settings.eta)
    # One program for any number of steps up to a power of two.
    table = Calls.of(plan).part(0, plan.calls, 1 << (plan.calls - 1).bit_length())
    values = {
        name: np.asarray(getattr(settings, name), np.float32)
        for name in ("guidance_scale", "guidance_rescale", "temperature", "embedding_threshold")
    } | {"interval": np.asarray(settings.guidance_interval, np.int32)}
    static = {"solver": plan.solver, "guided": settings.guidance_scale != 1}
    return (values, table, np.asarray(plan.calls, np.int32)), static


@lru_cache(maxsize=8)
def prior_program(model: PriorConfig, diffusion: DiffusionConfig, mesh: Mesh) -> Any:
    """The compiled program of a prior.

    `(params, inputs, empty, values, table, calls, *, solver, guided) -> (b, d)`: embeddings in the
    CLIP's space. Only `solver`, `guided`, the batch size and the table's length compile another.
    """
    if model.architecture == "autoregressive":
        return _ar_program(model, mesh)
    network, platform = prior_network(model), Platform.of(mesh, None, training=False)

    def sample(
        params: Params,
        inputs: PriorInputs,
        empty: TextStates,
        values: dict[str, jax.Array],
        table: Calls,
        calls: jax.Array,
        *,
        solver: Solver,
        guided: bool,
    ) -> Float[Array, "b d"]:
        prior, text = network.bind(params, platform), inputs.text
        if guided:
            text = _with_empty(text, empty)

        prefix = prior.encode_text(text)

        def predict(x_t: jax.Array, t: jax.Array) -> jax.Array:
            x_0 = prior.denoise(x_t, t, prefix)  # b d
            return jnp.concatenate([x_0, jnp.full_like(x_0, -1)], -1)  # b 2*d, fixed variance

        denoise: Denoiser = predict
        if guided:
            denoise = classifier_free(
                predict,
                values["guidance_scale"],
                interval=(values["interval"][0], values["interval"][1]),
                rescale=values["guidance_rescale"],
            )
        limit, keys, shape = (
            values["embedding_threshold"],
            _keys(inputs.seeds, inputs.candidate),
            (model.embedding_width,),
        )
        state = advance(
            denoise,
            solver,
            begin(values["temperature"] * initial_noise(keys, shape), solver.history),
            table,
            per_image_noise(keys, shape),
            Hooks(threshold=lambda x_0: jnp.clip(x_0, -limit, limit)),
            predicts="x_0",
            count=calls,
        )
        return prior.denormalize(state.x_t)

    return jax.jit(sample, static_argnames=("solver", "guided"))


def _ar_program(model: PriorConfig, mesh: Mesh) -> Any:
    """The compiled program of an autoregressive prior, called as that of a diffusion prior.

    Of the sampling settings, guidance_scale and temperature apply, to the logits. The dot product
    of image and caption is drawn from the upper half of those of training images (sec. 2.2, arXiv
    2204.06125).
    """
    network, platform = ar_prior(model), Platform.of(mesh, None, training=False)

    def sample(
        params: Params,
        inputs: PriorInputs,
        empty: TextStates,
        values: dict[str, jax.Array],
        table: Calls,
        calls: jax.Array,
        *,
        solver: Solver,
        guided: bool,
    ) -> Float[Array, "b d"]:
        prior, text = network.bind(params, platform), inputs.text
        keys, lowest = _keys(inputs.seeds, inputs.candidate), model.dot_buckets // 2

        def draw(key: jax.Array) -> jax.Array:
            return jax.random.randint(jax.random.fold_in(key, 0), (), lowest, model.dot_buckets)

        def pick(logits: jax.Array, i: jax.Array) -> jax.Array:
            if guided:
                own, other = jnp.split(logits, 2)
                logits = other + values["guidance_scale"] * (own - other)
            logits /= jnp.maximum(values["temperature"], 1e-6)
            own_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, i + 1)
            codes = jax.vmap(jax.random.categorical)(own_keys, logits)
            return jnp.concatenate([codes, codes]) if guided else codes

        # An empty prompt has the code that empty captions have in training.
        dot = jnp.where(jnp.sum(text.mask, -1) > EMPTY_TOKENS, jax.vmap(draw)(keys), 0)
        if guided:
            text, dot = _with_empty(text, empty), jnp.concatenate([dot, jnp.zeros_like(dot)])
        return prior.decode(prior.sample(dot, text, pick)[: len(keys)])

    return jax.jit(sample, static_argnames=("solver", "guided"))


def _with_empty(text: TextStates, empty: TextStates) -> TextStates:
    """The captions, then as many empty ones."""
    return jax.tree.map(
        lambda x, row: jnp.concatenate([x, jnp.broadcast_to(row, x.shape)]), text, empty
    )


def _keys(seeds: UInt32[Array, "b"], candidate: Int[Array, "b"]) -> Key[Array, "b"]:
    """A random key for each candidate."""

    def key(seed: jax.Array, candidate: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), PRIOR), candidate)

    return jax.vmap(key)(seeds, candidate)
