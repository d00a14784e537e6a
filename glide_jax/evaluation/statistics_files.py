"""Files of statistics: this project's, guided-diffusion's, pytorch-fid's and EDM2's.

All but EDM2's are .npz files with mu and sigma. Those of this project add the number of images and
the settings of the features; pytorch-fid reads them too. guided-diffusion's evaluator reads only
files that also have images.
"""

import io
import json
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np

from glide_jax.errors import UserError
from glide_jax.evaluation.statistics import Statistics
from glide_jax.pretrained.pickles import read_pickled_arrays
from glide_jax.storage import AnyPath, read_regular, write_atomically

SUFFIXES = (".npz", ".pkl")

MAX_BYTES = 2**31
"""Largest file that is read; the FID's statistics have 34 MB."""

SUFFIX_OF_OUTPUT = {"pool": "", "spatial": "_s"}
"""Ending of mu and sigma in an .npz file, by output of the network; guided-diffusion's names."""

_NAMES = tuple(f"{name}{ending}" for name in ("mu", "sigma") for ending in ("", "_s"))

EDM2_ENTRIES = {"inception": ("fid", "tf1"), "dinov2-vit-l-14": ("fd_dinov2", "edm2")}
"""Names in EDM2's files, and resizing of their features, by network."""


def write_statistics(path: AnyPath, statistics: Mapping[str, Statistics]) -> None:
    """Writes a complete file, or none.

    Args:
        path: ends in .npz, or in .pkl for EDM2's format, which has pooled features only.
        statistics: by output of one network: "pool", and "spatial" for the sFID.

    Raises:
        UserError: see `require_format`.
    """
    pool = statistics["pool"]
    network = pool.settings.get("network", "")
    require_format(path, network, pool.settings.get("resize"))
    if path.suffix == ".pkl":
        entry, _ = EDM2_ENTRIES[network]
        write_atomically(path, pickle.dumps({entry: {"mu": pool.mu, "sigma": pool.sigma}}))
        return
    arrays: dict[str, Any] = {"settings": json.dumps(dict(pool.settings))}
    for output, found in statistics.items():
        arrays[f"mu{SUFFIX_OF_OUTPUT[output]}"] = found.mu
        arrays[f"sigma{SUFFIX_OF_OUTPUT[output]}"] = found.sigma
    if pool.n is not None:
        arrays["n"] = pool.n
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    write_atomically(path, file.getvalue())


def require_format(path: AnyPath, network: str, resize: str | None = None) -> None:
    """Raises UserError if a file of this suffix cannot have a network's statistics."""
    _require_suffix(path)
    if path.suffix != ".pkl":
        return
    if network not in EDM2_ENTRIES:
        raise UserError(
            f"{path}: EDM2's format has no name for {network or 'an unknown network'}, only "
            f"for {', '.join(EDM2_ENTRIES)}; use .npz"
        )
    expected = EDM2_ENTRIES[network][1]
    if resize not in (None, expected):
        raise UserError(
            f"{path}: EDM2's statistics of {network} are of images resized by {expected}, not "
            f"{resize}; use .npz, or --resize {expected}"
        )


def read_statistics(path: AnyPath, output: str = "pool", network: str = "inception") -> Statistics:
    """Statistics from a file of any of the four kinds.

    Args:
        path: .npz or .pkl.
        output: of the network: "pool" or "spatial".
        network: which entry of an EDM2 file to read. Other files of this project name their own.

    Raises:
        UserError: the file is missing, damaged, or has no such statistics.
    """
    arrays = _arrays(path)
    if path.suffix == ".pkl":
        return _of_edm2(path, arrays, output, network)
    ending = SUFFIX_OF_OUTPUT[output]
    names = (f"mu{ending}", f"sigma{ending}")
    for name in names:
        if name not in arrays:
            raise UserError(f"{path} has no {name}: it has {', '.join(arrays) or 'nothing'}")
    try:
        settings = dict(json.loads(str(arrays.get("settings", "{}"))))
        n = int(arrays["n"]) if "n" in arrays else None
    except (ValueError, TypeError):
        raise UserError(f"{path}: its settings are damaged") from None
    return _checked(path, arrays[names[0]], arrays[names[1]], n, settings)


def has_statistics(path: AnyPath) -> bool:
    """Whether a file holds statistics, not images. Raises UserError if it is damaged."""
    return path.suffix == ".pkl" or (path.suffix == ".npz" and "mu" in _arrays(path, ("mu",)))


def _arrays(path: AnyPath, names: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The arrays of a file, or those with the given names. Raises UserError."""
    _require_suffix(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if path.suffix == ".pkl":
            found = read_pickled_arrays(read_regular(path, MAX_BYTES))
            return found if isinstance(found, dict) else {}
        wanted = (*_NAMES, "settings", "n") if names is None else names
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if name in wanted}
    except UserError as error:
        raise UserError(f"{path} is refused: {error}") from None
    except Exception as error:  # on damaged files both libraries raise many kinds
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if isinstance(error, ValueError) and "pickle" in reason:  # NumPy's word for other formats
            reason = "it is of another format"
        raise UserError(
            f"{path} is not a valid {path.suffix} file of statistics ({reason})"
        ) from error


def _of_edm2(path: AnyPath, entries: dict[str, Any], output: str, network: str) -> Statistics:
    name, resize = EDM2_ENTRIES.get(network, (None, ""))
    entry = entries.get(name) if name is not None and output == "pool" else None
    if not isinstance(entry, dict) or not {"mu", "sigma"} <= set(entry):
        raise UserError(
            f"{path} has no statistics for the {output} features of {network}: it has "
            f"{', '.join(map(str, entries)) or 'nothing'}"
        )
    return _checked(path, entry["mu"], entry["sigma"], None, {"network": network, "resize": resize})


def _checked(
    path: AnyPath,
    mu: Any,
    sigma: Any,
    n: int | None,
    settings: Mapping[str, str],
) -> Statistics:
    """Statistics of plausible shapes and values. Raises UserError."""
    for name, array in (("mu", mu), ("sigma", sigma)):
        if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
            raise UserError(f"{path}: {name} is not an array of floating-point numbers")
        if not np.isfinite(array).all():
            raise UserError(f"{path}: {name} is not finite")
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise UserError(f"{path}: mu and sigma have shapes {mu.shape} and {sigma.shape}")
    return Statistics(mu.astype(np.float64), sigma.astype(np.float64), n, settings)


def _require_suffix(path: AnyPath) -> None:
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: a file of statistics ends in {' or '.join(SUFFIXES)}")
