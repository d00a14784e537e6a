"""Measure a machine with a GPU: benchmarks/gpu.sh has the command.

A worker process measures one row after another (benchmarks/gpu_rows.py); this process writes what
it sends to gpu.jsonl at once, ends it when a row exceeds its time, and starts another one for the
rows that are left. A second process meanwhile computes on the CPU what some rows compare with.
"""

import argparse
import json
import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax

from benchmarks import gpu_rows
from benchmarks.gpu_rows import REFERENCE, ROWS, Setup
from glide_jax.compilation import keep_compiled_programs

BUDGET_S = 230.0
"""Time of all rows."""
DRY_RUN = 8.0
"""Times as much for a dry run: a CPU compiles slowly."""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Measures a machine with a GPU.")
    parser.add_argument("--to", type=Path, required=True, help="folder of the results")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, for a dry run on a CPU")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    given = parser.parse_args()
    given.to.mkdir(parents=True, exist_ok=True)
    setup = Setup(given.to, given.tiny)
    (given.to / REFERENCE).unlink(missing_ok=True)
    spawn = multiprocessing.get_context("spawn")
    reference = spawn.Process(target=compute_reference, args=(setup,), daemon=True)
    reference.start()
    with (given.to / "gpu.jsonl").open("a", encoding="utf-8") as file:
        measure(given.rows, setup, file)
    reference.kill()


def compute_reference(setup: Setup) -> None:
    """Compute on the CPU, in a process of its own, what rows compare with."""
    jax.config.update("jax_platforms", "cpu")
    gpu_rows.write_reference(setup)


def measure(rows: list[str], setup: Setup, file: Any) -> None:
    """Measure rows within the budget, each within its own time."""
    patience = DRY_RUN if setup.tiny else 1.0
    deadline = time.monotonic() + patience * BUDGET_S
    worker = Worker(setup)
    for name in rows:
        started = time.monotonic()
        limit = min(started + patience * ROWS[name].limit_s, deadline)
        if limit - started < 2:
            write(file, name, started, {"error": "not measured: no time left"})
            continue
        try:
            worker.connection.send(name)
            while worker.connection.poll(max(limit - time.monotonic(), 0)):
                if (result := worker.connection.recv()) is None:
                    break
                write(file, name, started, result)
                if result.get("backend") == "cpu" and not setup.tiny:
                    raise SystemExit("JAX has no GPU here; --tiny is a dry run on a CPU")
            else:
                raise TimeoutError(f"ended after {time.monotonic() - started:.0f} s")
        except (EOFError, OSError) as error:  # the worker crashed, or a TimeoutError
            write(file, name, started, {"error": str(error) or "the process crashed"})
            worker.end()
            worker = Worker(setup)
    worker.end()


class Worker:
    """A process that measures the rows whose names it receives."""

    def __init__(self, setup: Setup) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.connection, theirs = spawn.Pipe()
        self.process = spawn.Process(target=work, args=(theirs, setup), daemon=True)
        self.process.start()
        theirs.close()  # so that a crash ends the connection

    def end(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def work(connection: Connection, setup: Setup) -> None:
    """Measure rows: send every result as soon as there is one, then None."""
    keep_compiled_programs()  # a second start, for the rows without time left, is faster
    while True:
        name = connection.recv()
        try:
            for result in ROWS[name].measure(setup):
                connection.send(result)
        except (Exception, SystemExit) as error:
            lines = str(error).splitlines() or [""]
            connection.send({"error": f"{type(error).__name__}: {lines[0][:500]}"})
        gpu_rows.free_memory()
        connection.send(None)


def write(file: Any, name: str, started: float, result: dict[str, Any]) -> None:
    """Append a line, and print it."""
    after_s = round(time.monotonic() - started, 1)
    line = json.dumps({"row": name, "after_s": after_s} | result, default=float)
    print(line, flush=True)
    file.write(line + "\n")
    file.flush()


if __name__ == "__main__":
    main()
