"""Profiles of compiled programs, by operation."""

import gzip
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TOP = 20
"""Operations that are listed."""


def profile(name: str, run: Callable[[], Any], to: Path) -> Iterator[dict[str, Any]]:
    """Device time of a run, and of its longest operations. The trace stays in `to`."""
    import jax

    run()  # compiles
    folder = to / f"trace_{name}"
    with jax.profiler.trace(str(folder)):
        run()
    operations = operation_times(folder)
    total = sum(operations.values())
    yield {"program": name, "device_s": total}
    for operation, s in sorted(operations.items(), key=lambda item: -item[1])[:TOP]:
        yield {"operation": operation, "s": s, "share": s / total}


def operation_times(folder: Path) -> dict[str, float]:
    """Seconds of each XLA operation in a trace of jax.profiler, numbered copies added up."""
    file = max(folder.rglob("*.trace.json.gz"))  # the latest; folders are named by time
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    times: dict[str, float] = defaultdict(float)
    threads = [event for event in events if event.get("name") == "thread_name"]
    # A GPU's streams; another row of threads repeats their events. A CPU has none.
    streams = {(e["pid"], e["tid"]) for e in threads if "Stream" in e["args"]["name"]}
    for event in events:
        operation = event.get("args", {}).get("hlo_op")
        counts = not streams or (event.get("pid"), event.get("tid")) in streams
        if event.get("ph") == "X" and operation and counts:
            times[operation.rstrip(".0123456789")] += event["dur"] / 1e6
    return times
