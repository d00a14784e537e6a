"""What a run tells while it goes: a progress bar, metrics.jsonl and TensorBoard."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tensorboardX import SummaryWriter
from tqdm import tqdm

METRICS = "metrics.jsonl"


class RunLog:
    """The log of one run; a resumed run goes on as if it had never stopped.

    Args:
        run_dir: the run folder.
        start_step: steps already taken; what an earlier process logged beyond them is removed.
        steps: of the whole run.
        batch_examples: pictures a step.
        lead: whether this process speaks for the run; the others count along in silence.
    """

    def __init__(
        self, run_dir: Path, start_step: int, steps: int, batch_examples: int, lead: bool = True
    ) -> None:
        self._lead = lead
        self._path = run_dir / METRICS if lead else Path(os.devnull)
        if lead:
            self._forget_after(start_step)
        self._file = self._path.open("a", buffering=1)
        self._tensorboard = SummaryWriter(
            str(run_dir / "tensorboard"),
            purge_step=start_step + 1 if start_step else None,
            write_to_disk=lead,
        )
        self._bar = tqdm(
            total=steps,
            initial=start_step,
            unit="step",
            dynamic_ncols=True,
            smoothing=0.05,
            disable=not lead,
        )
        self._batch_examples = batch_examples
        self._window: dict[str, list[float]] = {}
        self._window_start = perf_counter()
        self._window_wait_s = 0.0

    def step(self, metrics: Mapping[str, float], wait_s: float) -> None:
        """Counts a step.

        Args:
            metrics: of the step.
            wait_s: seconds that it waited for data.
        """
        for name, value in metrics.items():
            self._window.setdefault(name, []).append(value)
        self._window_wait_s += wait_s
        self._bar.update()

    def write_window(self, step: int, **more: float | int) -> None:
        """Logs the means over the steps since the last call, and how fast they were."""
        steps = len(next(iter(self._window.values())))
        elapsed_s = perf_counter() - self._window_start
        means = {name: float(np.mean(values)) for name, values in self._window.items()}
        speed = steps * self._batch_examples / elapsed_s
        waited = self._window_wait_s / elapsed_s
        self.write(step, means | more | {"images_per_s": speed, "loader_wait_share": waited})
        self._bar.set_postfix_str(f"loss {means['loss']:.4f}, {speed:.0f} images/s")
        self._window.clear()
        self.restart_clock()

    def restart_clock(self) -> None:
        """Keeps what happened until now (validation, sampling, compiling) out of images/s."""
        self._window_start = perf_counter()
        self._window_wait_s = 0.0

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        """Adds a line to metrics.jsonl, and the values to TensorBoard."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: UInt8[np.ndarray, "h w 3"]) -> None:
        """Shows a picture in TensorBoard."""
        self._tensorboard.add_image(name, picture, step, dataformats="HWC")

    def say(self, line: str) -> None:
        """Prints a line above the progress bar."""
        if self._lead:
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
        self._tensorboard.close()

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
