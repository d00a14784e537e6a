"""What a run's time and memory go to."""

from dataclasses import dataclass
from pathlib import Path

import jax

from glide_jax.errors import UserError
from glide_jax.parallel import sharding
from glide_jax.parallel.chips import GIB
from glide_jax.storage import AnyPath
from glide_jax.training.step import Trainer


@dataclass(frozen=True, kw_only=True)
class ProfileFlags:
    """Flag of a trace."""

    profile: str = ""
    """Trace these steps for XProf, as FIRST:LAST, counted from this start: 10:15."""


class Profile:
    """A trace of some steps, which XProf and Perfetto show; nothing unless asked for.

    Args:
        first: step of this start, counted from 0, with which it begins; -1: never.
        last: step before which it ends.
    """

    def __init__(self, first: int = -1, last: int = -1) -> None:
        self._first, self._last = first, last
        self._steps = 0
        self._running = False

    @classmethod
    def of(cls, flags: ProfileFlags) -> "Profile":
        """The trace that `--profile FIRST:LAST` requests; no trace without the flag.

        Raises:
            UserError: these are not two steps in order.
        """
        if not flags.profile:
            return cls()
        first, colon, last = flags.profile.partition(":")
        if not (colon and first.isdigit() and last.isdigit() and int(first) < int(last)):
            raise UserError(
                f"--profile {flags.profile}: give the first step and the one after the last, as "
                "10:15; steps are counted from this start"
            )
        return cls(int(first), int(last))

    def before_step(self, folder: Path, name: AnyPath | None = None) -> str:
        """Begins or ends the trace where it is time for it; call it before each step.

        Args:
            folder: where it is written.
            name: where it is found afterwards, if that is not there.

        Returns:
            What there is to say, or "".
        """
        now, self._steps = self._steps, self._steps + 1
        if now == self._first:
            jax.profiler.start_trace(str(folder))
            self._running = True
        if now == self._last:
            return self.end(folder, name)
        return ""

    def end(self, folder: Path, name: AnyPath | None = None) -> str:
        """Ends the trace, if there is one; `before_step` describes the rest."""
        if not self._running:
            return ""
        self._running = False
        jax.profiler.stop_trace()
        found = folder if name is None else name
        return f"wrote a trace of the steps to {found}: pip install xprof; xprof {found}"


def memory_report(trainer: Trainer) -> str:
    """What a device holds between steps, in one line, and what it has where it tells."""
    state, shardings = trainer.abstract_state, trainer.state_shardings
    parts = [
        f"{name} {sharding.bytes_a_device(getattr(state, key), getattr(shardings, key)) / GIB:.2f}"
        for name, key in (
            ("parameters", "params"),
            ("moving average", "ema"),
            ("optimizer", "opt_state"),
        )
    ]
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = f"; it has {stats['bytes_limit'] / GIB:.1f}" if "bytes_limit" in stats else ""
    return f"GiB a device: {', '.join(parts)}{limit}"


def peak_memory() -> dict[str, float]:
    """The most that this process's first device ever held, in GiB; nothing where none tells."""
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return {} if peak is None else {"peak_memory_gib": peak / GIB}
