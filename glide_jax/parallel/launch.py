"""A run of several processes: how they find each other, agree, and end together.

Each computes its part of every batch on its own devices; a `ProcessGroup` connects them besides.
"""

import contextlib
import dataclasses
import hashlib
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np
from jax.experimental import multihost_utils

from glide_jax.config import Config
from glide_jax.errors import UserError
from glide_jax.parallel.process_group import GONE, GRACE_S, HEARTBEAT_TIMEOUT_S, ProcessGroup
from glide_jax.parallel.rendezvous import listen, own_address, parse_address, rendezvous

START_S = 300
"""How long processes wait for each other at the start, unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class LaunchFlags:
    """Flags of a run with several processes; see docs/multi-host.md."""

    coordinator: str = ""
    """Address of process 0, as HOST:PORT. Give it with --processes and --process."""
    processes: int | None = None
    """Number of processes."""
    process: int | None = None
    """Number of this process, from 0."""
    distributed: bool = False
    """Let JAX find the processes: SLURM, a TPU pod, Open MPI, Kubernetes."""
    start_timeout_s: int = START_S
    """Longest wait for the other processes at the start, in seconds."""
    heartbeat_timeout_s: int = HEARTBEAT_TIMEOUT_S
    """Time without a heartbeat after which a process counts as gone, in seconds."""


@dataclass(frozen=True)
class Launch:
    """How a process was started: alone, unless something says otherwise."""

    coordinator: str = ""
    """Where process 0 listens, as host:port; empty where JAX finds that out by itself."""
    processes: int = 1
    """Of the run; where JAX finds that out by itself, as far as known."""
    process: int = 0
    """Number of this one."""
    found_by_jax: bool = False
    """Whether the cluster says who takes part: SLURM, a TPU pod, Open MPI, Kubernetes."""
    start_s: int = START_S
    heartbeat_timeout_s: int = HEARTBEAT_TIMEOUT_S
    """A process of which the others hear nothing for so long counts as gone."""

    @classmethod
    def of(cls, flags: LaunchFlags, environment: Mapping[str, str]) -> "Launch":
        """The launch that the flags, or else the environment, describe.

        Args:
            flags: of the command; they differ from process to process.
            environment: of the process.

        Raises:
            UserError: the flags contradict each other.
        """
        start_s, heartbeat_s = flags.start_timeout_s, flags.heartbeat_timeout_s
        if min(start_s, heartbeat_s) < 1:
            raise UserError("--start-timeout-s and --heartbeat-timeout-s must be at least 1")
        coordinator, processes, process = flags.coordinator, flags.processes, flags.process
        if not coordinator and processes is None and process is None:
            tasks = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
            hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
            found = flags.distributed or tasks > 1 or len(hosts) > 1
            return cls("", tasks, 0, found, start_s, heartbeat_s)
        if not coordinator or processes is None or process is None or flags.distributed:
            raise UserError(
                "give --coordinator HOST:PORT, --processes N and --process I together, and "
                "without --distributed"
            )
        parse_address(coordinator)
        if not 0 <= process < processes:
            raise UserError(
                f"--process {process} must be from 0 to {processes - 1} with "
                f"--processes {processes}"
            )
        return cls(coordinator, processes, process, False, start_s, heartbeat_s)

    @property
    def sharing_cores(self) -> int:
        """How many processes share this machine's cores, as far as known.

        SLURM gives every task cores of its own.
        """
        local = self.coordinator.rpartition(":")[0] in ("localhost", "127.0.0.1", "[::1]")
        return self.processes if local else 1


@contextlib.contextmanager
def joined(launch: Launch, last_step: Callable[[], int | None]) -> Iterator[ProcessGroup]:
    """Joins the run's processes, and sees to it that all end when one does.

    Call it before JAX is used. A `UserError` of one process ends all with status 2, and a process
    that is gone with status `group.GONE`, each with a line that names it.

    Args:
        launch: how this process was started.
        last_step: see `ProcessGroup`.

    Raises:
        UserError: the others are not found, or one was started otherwise.
    """
    if not launch.found_by_jax and launch.processes == 1:
        yield ProcessGroup()
        return
    # Requests to stop are agreed on by the loop; JAX's own service would take SIGTERM away.
    jax.config.update("jax_enable_preemption_service", False)
    if launch.found_by_jax:
        _connect_jax(launch)
        if jax.process_count() == 1:
            yield ProcessGroup()
            return
    group, jax_address = _meet(launch, last_step)
    try:
        if not launch.found_by_jax:
            _connect_jax(launch, jax_address)
        yield group
        group.shutdown()
    except UserError as error:
        group.fail(str(error), 2, f"error: {error}\n")
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, Exception):
            time.sleep(GRACE_S)  # if it comes from another's death, that is said meanwhile
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        group.fail(why, GONE, traceback.format_exc())
    jax.distributed.shutdown()


def _connect_jax(launch: Launch, address: str | None = None) -> None:
    """Makes all processes' devices one; None: at an address that the cluster names."""
    known: dict[str, Any] = {}
    if address is not None:
        known = {
            "coordinator_address": address,
            "num_processes": launch.processes,
            "process_id": launch.process,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(
            **known,
            initialization_timeout=launch.start_s,
            # Later than ours, which say more.
            heartbeat_timeout_seconds=2 * launch.heartbeat_timeout_s,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"JAX cannot connect the run's processes: {error}") from error


def _meet(launch: Launch, last_step: Callable[[], int | None]) -> tuple[ProcessGroup, str]:
    """The run's processes, and an address of the lead's for JAX."""
    index, count, address = launch.process, launch.processes, launch.coordinator
    if launch.found_by_jax:
        index, count = jax.process_index(), jax.process_count()
        listener = listen("", 0) if index == 0 else None
        own = f"{own_address()}:{listener.getsockname()[1]}" if listener else ""
        address = _gathered(own)[0]
    else:
        listener = listen(*parse_address(address)) if index == 0 else None
    connections, jax_port = rendezvous(
        listener, address, index, count, launch.start_s, launch.heartbeat_timeout_s
    )
    host = address.rpartition(":")[0]
    return ProcessGroup(
        index, count, connections, last_step, launch.heartbeat_timeout_s
    ), f"{host}:{jax_port}"


def _gathered(text: str) -> list[str]:
    """Every process's text, by JAX's own means."""
    padded = np.frombuffer(text.encode().ljust(256), np.uint8)
    return [bytes(row).decode().strip() for row in multihost_utils.process_allgather(padded)]


def any_process(flag: bool) -> bool:
    """Whether any process says so: all learn it at the same call, which all must make."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def require_same(group: ProcessGroup, config: Config, images: int) -> None:
    """Checks that all processes were started alike.

    Args:
        group: the processes.
        config: of this one.
        images: length of the data set that it sees.

    Raises:
        UserError: in all of them, naming the first that differs and in what.
    """
    versions = {
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "Python": platform.python_version(),
    }
    settings = dict(_settings(dataclasses.asdict(config)))
    facts = {
        "settings": settings,
        "versions": versions,
        "source": _source_digest(),
        "images": images,
    }
    ours, *others = group.gather(facts)
    for process, theirs in enumerate(others, 1):
        if theirs["source"] != ours["source"]:
            raise UserError(f"process {process} has another version of glide_jax than process 0")
        for kind in ("versions", "settings"):
            for name in sorted(ours[kind].keys() | theirs[kind].keys()):
                there, here = theirs[kind].get(name), ours[kind].get(name)
                if there != here:
                    raise UserError(
                        f"process {process} has {name} {there}, process 0 has {here}: start all "
                        "with the same"
                    )
        if theirs["images"] != ours["images"]:
            raise UserError(
                f"process {process} sees {theirs['images']:,} images, process 0 sees "
                f"{ours['images']:,}: give all the same data"
            )


def _settings(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _source_digest() -> str:
    """Of the package's source files."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + file.read_bytes())
    return digest.hexdigest()
