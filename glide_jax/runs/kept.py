"""Which checkpoints a run keeps, and which of them a path names.

runs/base64                     its newest checkpoint
runs/base64/checkpoints/4000    that of step 4,000
runs/base64/checkpoints/best    the best by train.best_metric, in metrics.jsonl
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from glide_jax.config import TrainConfig
from glide_jax.errors import UserError
from glide_jax.parallel.process_group import ProcessGroup
from glide_jax.runs.paths import CHECKPOINTS, METRICS, saved_steps
from glide_jax.storage import AnyPath, storage_errors

BEST = "best"
DEFAULT_METRIC = "validation_loss"
"""What `best` means for a run without train.best_metric."""
HIGHER_IS_BETTER = ("accuracy", "precision", "recall", "density", "coverage", "is", "cosine")
"""Words in the names of metrics that are better when higher; all others are losses or distances."""


def best_of(values: Mapping[int, float], metric: str, steps: Iterable[int]) -> int | None:
    """The step with the best value of a metric, the first of equals; None without any value.

    Args:
        values: of the metric, by step.
        metric: its name, which says whether higher is better.
        steps: to choose from.
    """
    sign = -1 if set(HIGHER_IS_BETTER) & set(metric.split("_")) else 1
    return min((s for s in steps if s in values), key=lambda s: (sign * values[s], s), default=None)


def logged_values(run_dir: AnyPath, metric: str) -> dict[int, float]:
    """The finite values of a metric in metrics.jsonl, by step. Raises UserError."""
    path = run_dir / METRICS
    with storage_errors("read", path):
        lines = path.read_bytes().splitlines() if path.is_file() else []
    values = {}
    for line in lines:
        # A killed process may leave half a line; other lines lack the metric.
        with suppress(ValueError, KeyError, TypeError, RecursionError, OverflowError):
            found = json.loads(line)
            step, value = int(found["step"]), float(found[metric])
            if math.isfinite(value):
                values[step] = value
    return values


class Best:
    """The record of the best checkpoint: the values of a metric at every step.

    A run that resumes reads them from metrics.jsonl.

    Args:
        metric: its name there.
        values: by step.
        group: the processes of the run, all of which keep the record.
    """

    def __init__(
        self, metric: str, values: Mapping[int, float], group: ProcessGroup | None = None
    ) -> None:
        self.metric, self._values, self._group = metric, dict(values), group or ProcessGroup()

    @classmethod
    def open(cls, run_dir: AnyPath, metric: str, group: ProcessGroup) -> "Best | None":
        """The record of a run; None without a metric. All processes must call it."""
        if not metric:
            return None
        values = group.gather(sorted(logged_values(run_dir, metric).items()))[0]
        return cls(metric, dict(values), group)

    def improves(self, step: int, values: Mapping[str, float], saved: Sequence[int]) -> bool:
        """Records the metrics of a step; whether it is better than all checkpoints, and not saved.

        All processes must call it; the lead's values count.

        Raises:
            UserError: other metrics of the same kind are there, and this one is not.
        """
        values = self._group.gather(dict(values))[0]
        kind = self.metric.partition("_")[0] + "_"
        if self.metric not in values:
            others = [name for name in values if name.startswith(kind)]
            if others:
                raise UserError(
                    f"train.best_metric is {self.metric}, which is not computed: choose from "
                    f"{', '.join(others)}"
                )
            return False
        if not math.isfinite(values[self.metric]):
            return False
        self._values[step] = values[self.metric]
        return step not in saved and self.best([*saved, step]) == step

    def best(self, steps: Iterable[int]) -> int | None:
        """The best of these steps."""
        return best_of(self._values, self.metric, steps)


class Kept:
    """Orbax's PreservationPolicy of a run. A checkpoint is deleted once a newer one is complete.

    Args:
        newest: how many of the newest checkpoints stay.
        every_steps: those of every k steps stay; 0: none.
        best: record of the best one, which stays; None: none.
    """

    def __init__(self, newest: int, every_steps: int = 0, best: Best | None = None) -> None:
        self._newest, self._every_steps, self.best = newest, every_steps, best

    @classmethod
    def of(cls, run_dir: AnyPath, settings: TrainConfig, group: ProcessGroup) -> "Kept":
        """What the settings of a run say. All processes must call it. Raises UserError."""
        best = Best.open(run_dir, settings.best_metric, group)
        return cls(settings.max_checkpoints, settings.keep_checkpoint_every_steps, best)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Whether to keep each of some checkpoints."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = set(sorted(steps)[-self._newest :])
        if self._every_steps:
            kept |= {step for step in steps if step % self._every_steps == 0}
        if self.best is not None:
            kept |= {self.best.best(steps)}
        return [step in kept for step in steps]


def split_checkpoint(path: AnyPath) -> tuple[AnyPath, str]:
    """A path as that of a run folder and the name of one of its checkpoints, or "".

    >>> split_checkpoint(Path("runs/a/checkpoints/best"))
    (Path("runs/a"), "best")
    """
    if path.parent.name == CHECKPOINTS and (path.name.isdigit() or path.name == BEST):
        return path.parent.parent, path.name
    return path, ""


def chosen_step(run_dir: AnyPath, name: str, metric: str) -> int | None:
    """The step of a checkpoint by its name; None for "", the newest.

    Args:
        run_dir: the run folder.
        name: from `split_checkpoint`.
        metric: train.best_metric of the run, or "".

    Raises:
        UserError: there is no such checkpoint.
    """
    if not name:
        return None
    steps = saved_steps(run_dir)
    kept = f"it keeps steps {', '.join(map(str, steps))}" if steps else "it has none"
    if name != BEST:
        if int(name) not in steps:
            raise UserError(f"{run_dir} has no complete checkpoint of step {name}: {kept}")
        return int(name)
    metric = metric or DEFAULT_METRIC
    best = best_of(logged_values(run_dir, metric), metric, steps)
    if best is None:
        raise UserError(
            f"{run_dir} has no checkpoint of a step with {metric} in {METRICS}: {kept}; set "
            "train.best_metric, or give checkpoints/STEP"
        )
    return best
