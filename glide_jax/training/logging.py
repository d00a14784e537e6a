"""What a run tells while it goes: a progress bar, metrics.jsonl and TensorBoard."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter, time
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

METRICS = "metrics.jsonl"


class RunLog:
    """The log of one run; a resumed run goes on as if it had never stopped.

    What is logged is in its file when the call returns, for whoever copies the files then.

    Args:
        run_dir: the run folder.
        start_step: steps already taken; what an earlier process logged beyond them is removed.
        steps: of the whole run.
        batch_examples: images a step.
        flops: of the model in a step, see `flops.step_flops`.
        peak_flops: of all devices in a second; 0 where that is not known, and neither is MFU then.
        lead: whether this process speaks for the run; the others count along in silence.
    """

    def __init__(
        self,
        run_dir: Path,
        start_step: int,
        steps: int,
        batch_examples: int,
        *,
        flops: float = 0.0,
        peak_flops: float = 0.0,
        lead: bool = True,
    ) -> None:
        self._flops, self._peak_flops = flops, peak_flops
        self._lead = lead
        self._path = run_dir / METRICS if lead else Path(os.devnull)
        if lead:
            self._forget_after(start_step)
        self._file = self._path.open("a", buffering=1)
        if lead:
            (run_dir / "tensorboard").mkdir(parents=True, exist_ok=True)
            # SummaryWriter's queue could still hold what was added when it is flushed.
            self._tensorboard = EventsWriter(str(run_dir / "tensorboard" / "events"))
            if start_step:  # hides what an earlier process logged beyond it
                self._add_event(start_step + 1, session_log=SessionLog(status=SessionLog.START))
        self._bar = tqdm(
            total=steps,
            initial=start_step,
            unit="step",
            dynamic_ncols=True,
            smoothing=0.05,
            disable=None if lead else True,  # None: in a job's log, where it is one long line
        )
        self._batch_examples = batch_examples
        self._window: dict[str, list[float]] = {}
        self.restart_clock()

    def step(self, metrics: Mapping[str, float], wait_s: float) -> None:
        """Counts a step.

        Args:
            metrics: of the step.
            wait_s: seconds that it waited for data.
        """
        for name, value in metrics.items():
            self._window.setdefault(name, []).append(value)
        self._timed_wait_s += wait_s
        self._timed_steps += 1
        self._bar.update()

    def write_window(self, step: int, **more: float | int) -> None:
        """Logs the means over the steps since the last call, and how fast they were."""
        elapsed_s = perf_counter() - self._clock_start
        means = {name: float(np.mean(values)) for name, values in self._window.items()}
        speed = {}
        if self._timed_steps:
            step_s = elapsed_s / self._timed_steps
            speed = {
                "images_per_s": self._batch_examples / step_s,
                "step_s": step_s,
                "loader_wait_share": self._timed_wait_s / elapsed_s,
            }
            if self._peak_flops:
                speed["mfu"] = self._flops / step_s / self._peak_flops
        self.write(step, means | more | speed)
        health = health_line(means | speed)
        self._bar.set_postfix_str(health)
        if self._bar.disable:
            self.say(f"step {step:,}: {health}")
        self._window.clear()
        self.restart_clock()

    def restart_clock(self) -> None:
        """Keeps what happened until now (validation, sampling, compiling) out of images/s."""
        self._clock_start = perf_counter()
        self._timed_wait_s, self._timed_steps = 0.0, 0

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        """Adds a line to metrics.jsonl, and the values to TensorBoard."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add_event(step, summary=Summary(value=scalars))

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Shows an image in TensorBoard."""
        self._add_event(step, summary=summary.image(name, image, dataformats="HWC"))

    def say(self, line: str) -> None:
        """Prints a line above the progress bar; nothing if it is empty."""
        if self._lead and line:
            self._bar.write(line)

    def state(self) -> dict[str, Any]:
        """The steps not yet logged, for the checkpoint."""
        return {"window": {name: list(values) for name, values in self._window.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state` gave."""
        self._window = {name: list(values) for name, values in state["window"].items()}

    def close(self) -> None:
        """Ends the bar and the files."""
        self._bar.close()
        self._file.close()
        if self._lead:
            self._tensorboard.close()

    def _add_event(self, step: int, **what: Any) -> None:
        if self._lead:
            self._tensorboard.write_event(Event(wall_time=time(), step=step, **what))
            self._tensorboard.flush()

    def _forget_after(self, step: int) -> None:
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except json.JSONDecodeError:  # the last line of a killed process may be cut short
                continue
        self._path.write_text("".join(kept))


def health_line(values: Mapping[str, float]) -> str:
    """How a run is doing: of a line of metrics what there is of these, in this order."""
    parts = (
        ("loss", "loss {:.4f}"),
        ("step_s", "{:.3g} s/step"),
        ("images_per_s", "{:,.0f} images/s"),
        ("mfu", "MFU {:.1%}"),
        ("loader_wait_share", "loader {:.0%}"),
        ("grad_norm", "|grad| {:.3g}"),
        ("skipped", "{:.0f} skipped"),
    )
    return ", ".join(text.format(values[name]) for name, text in parts if name in values)
