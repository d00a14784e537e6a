"""Profile of some training steps, and memory per device."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from glide_jax.errors import UserError, shown
from glide_jax.parallel import sharding
from glide_jax.parallel.chips import GIB
from glide_jax.training.step import Trainer


@dataclass(frozen=True, kw_only=True)
class ProfileFlags:
    """Flag of a profile."""

    profile: str | None = None
    """Steps to profile for XProf, as FIRST:LAST, counted from this start: 10:15."""


class Profile:
    """A profile of some steps, for XProf and Perfetto; by default, of none.

    Args:
        first: its first step, counted from 0 at this start; -1: no profile.
        last: the step after its last.
    """

    def __init__(self, first: int = -1, last: int = -1) -> None:
        self._first, self._last = first, last
        self._steps = 0
        self._running = False

    @classmethod
    def of(cls, flags: ProfileFlags) -> "Profile":
        """The profile that `--profile FIRST:LAST` requests; none without the flag.

        Raises:
            UserError: these are not two steps in order.
        """
        if flags.profile is None:
            return cls()
        match = re.fullmatch(r"([0-9]{1,12}):([0-9]{1,12})", flags.profile)
        if match is None or int(match[1]) >= int(match[2]):
            raise UserError(
                f"--profile {shown(flags.profile)}: give the first step and the one after the "
                "last, as 10:15; steps are counted from this start"
            )
        return cls(int(match[1]), int(match[2]))

    def before_step(self, folder: Path, state: Any = None) -> bool:
        """Starts or ends the profile if its first or last step is next; call it before each step.

        Args:
            folder: where the profile is written.
            state: of the steps before, which are waited for: they are computed in the background.

        Returns:
            Whether a profile was written.
        """
        step, self._steps = self._steps, self._steps + 1
        if step in (self._first, self._last):
            jax.block_until_ready(state)
        if step == self._first:
            jax.profiler.start_trace(str(folder))
            self._running = True
        return step == self._last and self.end()

    def end(self) -> bool:
        """Ends the profile if it is running. Returns whether it was written."""
        if not self._running:
            return False
        self._running = False
        jax.profiler.stop_trace()
        return True


def memory_report(trainer: Trainer) -> str:
    """Memory that a device holds between steps, and its size if the backend reports it."""
    state, shardings = trainer.abstract_state, trainer.state_shardings
    parts = [
        f"{name} {sharding.bytes_a_device(getattr(state, key), getattr(shardings, key)) / GIB:.2f}"
        for name, key in (("parameters", "params"), ("EMA", "ema"), ("optimizer", "opt_state"))
    ]
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = f" of {stats['bytes_limit'] / GIB:.1f}" if "bytes_limit" in stats else ""
    return f"GiB per device: {', '.join(parts)}{limit}"


def peak_memory() -> dict[str, float]:
    """Peak memory of this process's first device in GiB; empty if the backend reports none."""
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return {} if peak is None else {"peak_memory_gib": peak / GIB}
