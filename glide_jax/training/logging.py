"""The log of a run: progress bar, metrics.jsonl, TensorBoard, sample grids and profile."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter, time
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from glide_jax.errors import UserError, first_line
from glide_jax.images import save_png
from glide_jax.runs.folder import Run
from glide_jax.runs.paths import METRICS, PROFILE, SAMPLES, TENSORBOARD
from glide_jax.storage import AnyPath, MirroredFolder, storage_errors, write_atomically
from glide_jax.training.profiling import Profile

UPLOAD = ""
"""The whole run folder, where warnings name a file."""

NOT_AVERAGED = frozenset({"learning_rate", "skipped", "skipped_in_a_row"})
"""Metrics of a step of which the last value is logged."""


class RunLog:
    """The log of one run; a resumed run appends to it.

    Every call returns with its values in the files. For a run folder in a bucket, these are local
    files; `copy` uploads them. Use it as a context manager: leaving it closes the files.

    A file that cannot be written does not end the training: a warning says so, once. Lines that
    metrics.jsonl lacks are written as soon as possible; TensorBoard's entries, which are the same
    values, end at this start.

    Args:
        run: whose folder the files are in.
        start_step: steps already taken; entries beyond them are removed.
        profile: of which steps to profile.
        state: of the log at start_step, as `state` returned it.
        flops: of the model per step, see `flops.step_flops`.
        peak_flops: of all devices per second; 0 if unknown, which leaves out the MFU.
        lead: whether this process writes the log; the others only keep count.

    Raises:
        UserError: the files cannot be opened.
    """

    def __init__(
        self,
        run: Run,
        start_step: int = 0,
        profile: Profile | None = None,
        state: Mapping[str, Any] | None = None,
        *,
        flops: float = 0.0,
        peak_flops: float = 0.0,
        lead: bool = True,
    ) -> None:
        self._run_dir = run.path
        self.lead = lead
        """Whether this process writes the log."""
        self._flops, self._peak_flops = flops, peak_flops
        self._profile = Profile() if profile is None else profile
        self._files = MirroredFolder(run.path, (METRICS,) if lead else ())
        with storage_errors("write the log in", run.path):
            self._open_files(start_step)
        self._bar = tqdm(
            total=run.config.train.steps,
            initial=start_step,
            unit="step",
            dynamic_ncols=True,
            smoothing=0.05,
            # None: no bar without a terminal, where it would be one long line.
            disable=None if lead else True,
        )
        self._batch_examples = run.config.train.batch_examples
        # Metrics of the steps since the last `write_window`.
        self._window = {k: list(v) for k, v in state["window"].items()} if state else {}
        self.restart_clock()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def before_step(self, state: Any) -> None:
        """Starts or ends the profile if a step of its range is next, once `state` is computed."""
        with self._writing(PROFILE):
            if self._profile.before_step(self._files.path / PROFILE, state):
                self.copy()
                self._say_profile()

    def step(self, metrics: Mapping[str, float], wait_s: float) -> None:
        """Counts a step.

        Args:
            metrics: of the step.
            wait_s: seconds that the step waited for data.
        """
        for name, value in metrics.items():
            self._window.setdefault(name, []).append(value)
        self._timed_wait_s += wait_s
        self._timed_steps += 1
        self._bar.update()

    def write_window(self, step: int, **more: float | int) -> None:
        """Logs a summary of the steps since the last call, the speed, and the values `more`."""
        elapsed_s = perf_counter() - self._clock_start
        means = {name: summarized(name, values) for name, values in self._window.items()}
        speed = {}
        if self._timed_steps:
            step_s = elapsed_s / self._timed_steps
            speed = {
                "images_per_s": self._batch_examples / step_s,
                "step_s": step_s,
                "loader_wait_fraction": self._timed_wait_s / elapsed_s,
            }
            if self._peak_flops:
                speed["mfu"] = self._flops / step_s / self._peak_flops
        self.write(step, means | more | speed)
        health = health_line(means | more | speed)
        self._bar.set_postfix_str(health)
        if self._bar.disable:
            self.say(f"step {step:,}: {health}")
        self._window.clear()
        self.restart_clock()

    def restart_clock(self) -> None:
        """Excludes the time until now (validation, sampling, compilation) from images/s."""
        self._clock_start = perf_counter()
        self._timed_wait_s, self._timed_steps = 0.0, 0

    def write(self, step: int, values: Mapping[str, float | int | None]) -> None:
        """Appends a line to metrics.jsonl, and the values to TensorBoard.

        A value that is None or not finite is null in the line: JSON has no NaN.
        """
        finite = {
            name: value if value is not None and math.isfinite(value) else None
            for name, value in values.items()
        }
        line = json.dumps({"step": step, **finite}, allow_nan=False) + "\n"
        self._unwritten += line.encode()
        self._write_lines()
        scalars = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in finite.items()
            if value is not None
        ]
        self._add_event(step, summary=Summary(value=scalars))

    def samples(self, step: int, grid: UInt8[np.ndarray, "h w 3"]) -> AnyPath:
        """Saves a grid of samples as samples/STEP.png, and shows it in TensorBoard.

        Returns:
            The file.

        Raises:
            UserError: the file cannot be written.
        """
        file = self._run_dir / SAMPLES / f"{step:07d}.png"
        if self.lead:
            with storage_errors("write", file):
                save_png(file, grid)
        self._add_event(step, summary=summary.image(SAMPLES, grid, dataformats="HWC"))
        return file

    def say(self, line: str) -> None:
        """Prints a line above the progress bar."""
        if self.lead:
            with suppress(OSError):  # a closed terminal or a full disk must not end the training
                self._bar.write(line)

    def state(self) -> dict[str, Any]:
        """The steps not yet logged, for the checkpoint."""
        return {"window": {name: list(values) for name, values in self._window.items()}}

    def copy(self) -> None:
        """Uploads the files to a run folder in a bucket. What fails is uploaded the next time."""
        with self._writing(UPLOAD):
            self._files.copy()

    def close(self) -> None:
        """Ends the profile and the bar, and closes and uploads the files. Raises UserError."""
        profiled = False
        with self._writing(PROFILE):
            profiled = self._profile.end()
        self._bar.close()
        self._write_lines()
        self._metrics.close()
        if self._tensorboard is not None:
            with self._writing(TENSORBOARD):
                self._tensorboard.close()
        self._files.close()
        if profiled:
            self._say_profile()

    def _open_files(self, start_step: int) -> None:
        """Opens metrics.jsonl and TensorBoard's file, without entries beyond `start_step`."""
        path = self._files.path / METRICS if self.lead else Path(os.devnull)
        if self.lead:
            _remove_lines_after(path, start_step)
        self._metrics = path.open("ab", buffering=0)  # which tells how much of a line it wrote
        self._unwritten = b""
        self._warned: set[str] = set()
        self._tensorboard: EventsWriter | None = None
        if self.lead:
            events = self._files.path / TENSORBOARD
            events.mkdir(parents=True, exist_ok=True)
            # SummaryWriter has a queue, which a flush does not empty.
            self._tensorboard = EventsWriter(str(events / "events"))
            if start_step:  # TensorBoard hides earlier entries from this step on
                self._add_event(start_step + 1, session_log=SessionLog(status=SessionLog.START))

    def _write_lines(self) -> None:
        """Writes what metrics.jsonl lacks."""
        with self._writing(METRICS):
            while self._unwritten:
                self._unwritten = self._unwritten[self._metrics.write(self._unwritten) :]

    def _add_event(self, step: int, **content: Any) -> None:
        writer, self._tensorboard = self._tensorboard, None
        if writer is not None:
            with self._writing(TENSORBOARD):
                writer.write_event(Event(wall_time=time(), step=step, **content))
                writer.flush()
                self._tensorboard = writer  # else not again: the file may end in half an entry

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """Turns errors of writing this file or folder of the run into one warning."""
        try:
            yield
        except (UserError, OSError, RuntimeError) as error:  # RuntimeError: the profiler
            if name not in self._warned:
                reason = getattr(error, "strerror", None) or first_line(error)
                if not isinstance(error, UserError):
                    reason = f"cannot write {self._run_dir / name}: {reason}"
                self.say(f"warning: {reason}; training continues")
            self._warned.add(name)
        else:
            self._warned.discard(name)

    def _say_profile(self) -> None:
        folder = self._run_dir / PROFILE
        self.say(f"wrote a profile to {folder}: pip install xprof; xprof {folder}")


def _remove_lines_after(metrics: Path, step: int) -> None:
    if not metrics.exists():
        return
    content = metrics.read_bytes()
    kept = b"".join(line + b"\n" for line in content.splitlines() if _is_until(step, line))
    if kept != content:
        write_atomically(metrics, kept)


def _is_until(step: int, line: bytes) -> bool:
    try:
        return bool(json.loads(line)["step"] <= step)
    # A killed process may leave half a line at the end.
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def summarized(name: str, values: Sequence[float]) -> float | None:
    """One value for a metric of several steps.

    The last value of `NOT_AVERAGED`; of others the mean over finite values, None if there are none.
    """
    if name in NOT_AVERAGED:
        return values[-1]
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else None


def health_line(values: Mapping[str, float | int | None]) -> str:
    """A one-line summary of metrics: those of the following that are present, in this order."""
    parts = (
        ("loss", "loss {:.4f}"),
        ("learning_rate", "learning rate {:.3g}"),
        ("step_s", "{:.3g} s/step"),
        ("images_per_s", "{:,.0f} images/s"),
        ("mfu", "MFU {:.1%}"),
        ("loader_wait_fraction", "loader {:.0%}"),
        ("grad_norm", "|grad| {:.3g}"),
        ("skipped", "{:.0f} skipped"),
    )
    return ", ".join(
        f"{name} not finite" if values[name] is None else text.format(values[name])
        for name, text in parts
        if name in values
    )


def validation_line(values: Mapping[str, float], seconds: float) -> str:
    """A one-line summary of validation losses: of the EMA and the raw parameters, by captions."""
    parts = []
    for name in ("loss", "mse", "accuracy", "cosine"):
        own = values.get(f"validation_{name}")
        if own is None:
            continue
        parts.append(f"{name} {own:.4f} (raw {values[f'validation_{name}_raw']:.4f})")
        for captions in ("shuffled", "no"):
            other = values.get(f"validation_{name}_{captions}_captions")
            if other is not None:
                change = f" ({other / own - 1:+.1%})" if own > 0 else ""
                parts.append(f"{captions} captions {other:.4f}{change}")
    return f"validation: {', '.join(parts)}, {seconds:.0f} s"
