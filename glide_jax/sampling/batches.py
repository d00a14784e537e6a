"""Running the compiled programs on one batch after another."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from tqdm import tqdm

from glide_jax.errors import UserError
from glide_jax.sampling.chunks import Chunk, Recipe, Values
from glide_jax.sampling.clip import ClipScorer
from glide_jax.sampling.programs import Captions, Inputs, Programs
from glide_jax.shapes import Params


class Task(NamedTuple):
    """What all batches of a call of a stage share."""

    negative: Captions
    values: Values
    chunks: list[Chunk]
    guide: ClipScorer | None
    bar: tqdm
    read: Callable[[np.ndarray], np.ndarray]
    """Conversion of each batch's x_0, such as `to_uint8`."""


class Batches:
    """Runs a model's programs, batch by batch; knows which are compiled, for the progress bar.

    Args:
        mesh: of the programs.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._compiled: set[tuple[Recipe, int, bool]] = set()
        # Accelerators get the next batch before the last is read. CPU devices might deadlock: the
        # programs of two batches at a time, with collectives, share their threads.
        self._queued = 0 if mesh.devices.flat[0].platform == "cpu" else 1

    def run(
        self,
        programs: Programs,
        params: Params,
        inputs: Mapping[str, Any],
        size: int,
        task: Task,
    ) -> np.ndarray:
        """x_0 of all images; the last batch repeats the last image, to fit the compiled programs.

        Args:
            programs: of the model.
            params: placed by them.
            inputs: the fields of `Inputs` for all images, on the host.
            size: of a batch.
            task: what all batches share.

        Raises:
            UserError: x_0 is not finite.
        """
        count = len(inputs["seeds"])
        images: list[np.ndarray] = []
        queue: deque[tuple[jax.Array, int]] = deque()

        def fetch() -> None:
            x_0, last_calls = queue.popleft()
            images.append(task.read(_on_host(x_0)))
            task.bar.update(last_calls)

        for start in range(0, count, size):
            which = np.minimum(np.arange(start, start + size), count - 1)
            chosen = jax.tree.map(lambda x, which=which: x[which], dict(inputs))
            batch = Inputs(**jax.device_put(chosen, programs.placement(size)))
            queue.append(self._dispatch(programs, params, batch, task))
            if len(queue) > self._queued:
                fetch()
        while queue:
            fetch()
        return np.concatenate(images)[:count]

    def _dispatch(
        self, programs: Programs, params: Params, batch: Inputs, task: Task
    ) -> tuple[jax.Array, int]:
        """Queues the programs of a batch.

        With a progress bar, one chunk is queued while the one before it runs.

        Returns:
            x_0, still to be computed, and the number of calls that the bar does not show yet.
        """
        _, values, parts, guide, bar, _ = task
        guided = any(chunk.recipe.guided for chunk in parts)
        history = parts[0].recipe.solver.history
        if not self._is_compiled(parts[0].recipe, batch, guide):
            bar.set_description("compiling")
        conditioned, state = programs.begin(
            params, batch, task.negative, values, guided=guided, history=history
        )
        captions = conditioned._replace(negative=None)
        shown_late = 0
        for recipe, table, calls in parts:
            compiled = self._is_compiled(recipe, batch, guide)
            if not compiled:
                bar.set_description("compiling")
            before = state
            state = programs.advance(
                params,
                None if guide is None else guide.params,
                batch.of_steps,
                conditioned if recipe.guided else captions,
                state,
                values,
                table,
                np.int32(calls),
                clip=None if guide is None else guide.network,
                recipe=recipe,
            )
            if not compiled:
                self._compiled.add((recipe, len(batch.seeds), guide is not None))
                bar.set_description("sampling")
            if not bar.disable:
                jax.block_until_ready(before)
                bar.update(shown_late)
            shown_late = calls
        return state.x_t, shown_late

    def _is_compiled(self, recipe: Recipe, batch: Inputs, guide: ClipScorer | None) -> bool:
        return (recipe, len(batch.seeds), guide is not None) in self._compiled


def _on_host(x_0: jax.Array) -> Float[np.ndarray, "b h w 3"]:
    """Images of a batch, once they are sampled. Raises UserError if they are not finite."""
    images = np.asarray(x_0)
    if not np.isfinite(images).all():
        raise UserError(
            "sampling gave numbers that are not finite: the weights are damaged, or a setting "
            "is extreme (scales, temperature)"
        )
    return images
