"""A run's averaged parameters, as drawing and fine-tuning read them."""

import contextlib
from collections.abc import Mapping

import jax

from glide_jax.pretrained.weight_files import read_tensors
from glide_jax.runs.folder import WEIGHTS, resolve_run
from glide_jax.runs.state import require_same_shapes
from glide_jax.shapes import Params
from glide_jax.storage import AnyPath


def load_weights(
    run_dir: str | AnyPath,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    shardings: Mapping[str, jax.sharding.Sharding] | None = None,
) -> Params:
    """A run folder's averaged parameters, as float32.

    Args:
        run_dir: see `resolve_run`. Its exported weights are read where there are some, else its
            newest whole checkpoint.
        shapes: of all parameters, by name.
        shardings: where they go, likewise; this process's first device unless given.

    Raises:
        UserError: there are none, they cannot be read, or they have other names or shapes.
    """
    run_dir = resolve_run(run_dir)
    weights = run_dir / WEIGHTS
    if not weights.exists():
        # Here, since it brings orbax, which is long to import, and exported weights do without.
        from glide_jax.runs.checkpoint import Checkpoints

        with contextlib.closing(Checkpoints(run_dir)) as checkpoints:
            return checkpoints.restore_ema(shapes, shardings)
    found = read_tensors(weights)
    require_same_shapes(shapes, found, f"the weights {weights}")
    return jax.device_put(found, jax.local_devices()[0] if shardings is None else shardings)
