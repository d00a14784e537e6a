"""Launch of a multi-process run: which processes take part, and that all are started alike.

JAX makes the devices of all processes one mesh; a `ProcessGroup` ends the processes together.
"""

import contextlib
import dataclasses
import hashlib
import platform
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jaxlib
import numpy as np
from jax.experimental import multihost_utils

from glide_jax.config import Config
from glide_jax.config.bounds import Between
from glide_jax.errors import UserError
from glide_jax.parallel.process_group import ProcessGroup
from glide_jax.parallel.rendezvous import HEARTBEAT_TIMEOUT_S, listen, parse_address, rendezvous

START_S = 300
"""Default time that processes wait for each other at the start."""


@dataclass(frozen=True, kw_only=True)
class LaunchFlags:
    """Flags of a run with several processes; see docs/multi-host.md."""

    coordinator: str = ""
    """Address of process 0, as HOST:PORT. Give it with --processes and --process."""
    processes: Annotated[int | None, Between(1, 2**16)] = None
    """Number of processes."""
    process: Annotated[int | None, Between(0, 2**16)] = None
    """Number of this process, from 0."""
    distributed: bool = False
    """Let JAX find the processes: SLURM, a TPU pod, Open MPI, Kubernetes."""
    start_timeout_s: Annotated[int, Between(1, 10**6)] = START_S
    """Longest wait for the other processes at the start, in seconds."""
    heartbeat_timeout_s: Annotated[int, Between(1, 10**6)] = HEARTBEAT_TIMEOUT_S
    """Time without a heartbeat after which a process counts as gone, in seconds."""


@dataclass(frozen=True)
class Launch:
    """`LaunchFlags`, completed from the environment; by default, the only process of its run."""

    coordinator: str = ""
    processes: int = 1
    """Number of processes; an estimate if JAX finds them."""
    process: int = 0
    found_by_jax: bool = False
    start_s: int = START_S
    heartbeat_timeout_s: int = HEARTBEAT_TIMEOUT_S

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
        coordinator, processes, process = flags.coordinator, flags.processes, flags.process
        if not coordinator and processes is None and process is None:
            count = environment.get("SLURM_STEP_NUM_TASKS", "1")
            if not count.isdecimal():
                raise UserError(f"SLURM_STEP_NUM_TASKS={count} is not a number: unset it")
            tasks = int(count)
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
        """Number of processes known to share this machine's cores.

        SLURM gives every task its own cores.
        """
        local = self.coordinator.rpartition(":")[0] in ("localhost", "127.0.0.1", "[::1]")
        return self.processes if local else 1


@contextlib.contextmanager
def joined(launch: Launch, last_step: Callable[[], int | None]) -> Iterator[ProcessGroup]:
    """Joins the processes of the run, which all end when one does. Call it before JAX is used.

    A `UserError` in one process ends all with status 2. The death of one ends the others with
    status `process_group.GONE` and a line that names it.

    Args:
        launch: how this process was started.
        last_step: see `ProcessGroup`.

    Raises:
        UserError: a process is missing, or was started differently.
    """
    if not launch.found_by_jax and launch.processes == 1:
        yield ProcessGroup()
        return
    # The training loop agrees on requests to stop; JAX's own service would take SIGTERM away.
    jax.config.update("jax_enable_preemption_service", False)
    listener = None
    if launch.found_by_jax:
        _connect_jax(launch)
        if jax.process_count() == 1:
            yield ProcessGroup()
            return
        launch, listener = _located(launch)
    elif launch.process == 0:
        listener = listen(launch.coordinator)
    where = (launch.coordinator, launch.process, launch.processes)
    links = rendezvous(listener, *where, launch.start_s, launch.heartbeat_timeout_s)
    group = ProcessGroup(*where[1:], links, last_step, launch.heartbeat_timeout_s)
    try:
        if not launch.found_by_jax:
            _connect_jax(
                launch,
                coordinator_address=launch.coordinator,  # free again after the rendezvous
                coordinator_bind_address=launch.coordinator,  # by default, all interfaces
                num_processes=launch.processes,
                process_id=launch.process,
                cluster_detection_method="deactivate",
            )
        yield group
        group.shutdown()
    except (Exception, KeyboardInterrupt) as error:
        group.fail(error)
    jax.distributed.shutdown()


def _connect_jax(launch: Launch, **where: Any) -> None:
    """Makes the devices of all processes visible; without `where`, the cluster names them."""
    try:
        jax.distributed.initialize(
            **where,
            initialization_timeout=launch.start_s,
            # Later than the process group's, whose message is clearer.
            heartbeat_timeout_seconds=2 * launch.heartbeat_timeout_s,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"JAX cannot connect the processes of the run: {error}") from error


def _located(launch: Launch) -> tuple[Launch, socket.socket | None]:
    """A launch with the processes that JAX found, and the lead's listener."""
    lead, listener, address = jax.process_index() == 0, None, ""
    if lead:
        # Without a default route, the host's name may have no address that the others know.
        host, interface = socket.gethostname(), "0.0.0.0"
        probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with probe, contextlib.suppress(OSError):
            probe.connect(("192.0.2.1", 9))  # sends nothing, but chooses an interface
            host = interface = probe.getsockname()[0]
        listener = listen(f"{interface}:0")
        address = f"{host}:{listener.getsockname()[1]}"
    padded = np.frombuffer(address.encode().ljust(256), np.uint8)
    address = bytes(multihost_utils.broadcast_one_to_all(padded, is_source=lead)).decode().strip()
    numbers = {"process": jax.process_index(), "processes": jax.process_count()}
    return dataclasses.replace(launch, coordinator=address, **numbers), listener


def require_same(group: ProcessGroup, config: Config, images: int) -> None:
    """Checks that all processes have the same settings, versions and data.

    Args:
        group: the processes.
        config: of this process.
        images: size of the data set that this process sees.

    Raises:
        UserError: in all processes, naming the first difference.
    """
    facts = {
        "glide_jax source": _source_digest(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "Python": platform.python_version(),
        **config.flat(),
        "data set size": images,
    }
    ours, *others = group.gather(facts)
    for process, theirs in enumerate(others, 1):
        for name in {**ours, **theirs}:
            there, here = theirs.get(name), ours.get(name)
            if there != here:
                raise UserError(
                    f"process {process} has {name} {there}, process 0 has {here}: start all with "
                    "the same settings, versions and data"
                )


def _source_digest() -> str:
    """Digest of the package's source files."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + file.read_bytes())
    return digest.hexdigest()[:12]
