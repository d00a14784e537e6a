"""`ModelSet`: trained models by role, each loaded when it is first needed."""

import os
from collections.abc import Collection, Sequence
from typing import Any, ClassVar, TypeVar

from glide_jax.compilation import keep_compiled_programs
from glide_jax.config import Config, ModelConfig, SampleConfig
from glide_jax.errors import UserError, shown
from glide_jax.runs.folder import Run
from glide_jax.sampling.arguments import require_whole
from glide_jax.sampling.clip import ClipScorer
from glide_jax.sampling.settings import changed_settings
from glide_jax.sampling.stage import Stage
from glide_jax.storage import AnyPath

MAX_DEVICES = 2**16
"""Devices over which parameters are sharded, at most."""
Set = TypeVar("Set", bound="ModelSet")


class ModelSet:
    """Trained models by role. Any of them may be missing.

    Args:
        runs: by role, one of `roles`.
        one_at_a_time: free each model before loading the next, to save memory.
        fsdp: devices over which each model's parameters are sharded, see `Stage`.
    """

    roles: ClassVar[tuple[str, ...]]
    """Roles of the set's models. In a folder of models, each run folder is named after its role."""

    def __init__(self, runs: dict[str, Run], *, one_at_a_time: bool = False, fsdp: int = 1) -> None:
        self.runs = runs
        self._one_at_a_time = one_at_a_time
        self._fsdp = fsdp
        self._loaded: dict[str, Any] = {}

    def __repr__(self) -> str:
        models = (
            f"{role}: {run.path}, {run.config.model.resolution_px} px"
            for role, run in self.runs.items()
        )
        return f"{type(self).__name__}({'; '.join(models)})"

    @classmethod
    def load(
        cls: type[Set], *folders: str | AnyPath, one_at_a_time: bool = False, fsdp: int = 1
    ) -> Set:
        """Finds the models in run folders and in folders of run folders.

        Runs with other roles than the set's are ignored. Compiled programs are kept between runs,
        see `keep_compiled_programs`.

        Args:
            folders: written by train.py, glide_jax.export or glide_jax.convert; "demo" and
                "demo/base" name models shipped with the package, see `resolve_run`.
            one_at_a_time: free each model before loading the next, to save memory.
            fsdp: devices over which each model's parameters are sharded, see `Stage`.

        Raises:
            UserError: there is no run in a folder, two runs have the same role, none has a role of
                the set, or fsdp is no number of devices.
        """
        require_whole("fsdp", fsdp, 0, MAX_DEVICES)
        keep_compiled_programs()
        for folder in folders:
            if not isinstance(folder, str | os.PathLike):
                raise UserError(f"models are loaded from folders, not from {shown(folder)}")
        runs = [run for folder in folders for run in Run.open_all(folder)]
        if not runs:
            raise UserError("no models: give at least one run folder (--checkpoint)")
        by_role: dict[str, Run] = {}
        for run, role in cls._with_roles(runs):
            if role in by_role:
                raise UserError(
                    f"{by_role[role].path} and {run.path} are both {role} models: give one"
                )
            by_role[role] = run
        known = {role: run for role, run in by_role.items() if role in cls.roles}
        if not known:
            raise UserError(
                f"{runs[0].path} is a {role_of(runs[0].config)} model: {cls.__name__} needs "
                f"others: give the run folders of {', '.join(cls.roles)}"
            )
        return cls(known, one_at_a_time=one_at_a_time, fsdp=fsdp)

    @classmethod
    def _with_roles(cls, runs: Sequence[Run]) -> list[tuple[Run, str]]:
        return [(run, role_of(run.config)) for run in runs]

    def has(self, role: str) -> bool:
        """Whether there is a model with this role, one of `roles`."""
        return role in self.runs

    def config(self, role: str) -> Config:
        """The configuration of the model with this role, one of `roles`.

        Raises:
            UserError: there is none.
        """
        if not self.has(role):
            hint = "; give its run folder too"
            if role == "base" and self.has("upsample"):
                hint = "; an upsampler alone upsamples given images: upsample, --low-res"
            if role == "base" and self.has("base-inpaint"):
                hint = "; an inpainting model needs an image: inpaint, --image"
            given = ", ".join(self.runs)
            raise UserError(f"no {role} model is given, only: {given}{hint}")
        return self.runs[role].config

    def settings(self, role: str, **changes: Any) -> SampleConfig:
        """The sampling settings of the model with this role, changed. Raises UserError."""
        return changed_settings(self.config(role).sample, **changes)

    def stage(self, role: str) -> Stage:
        """The model with this role, loaded. Raises UserError if there is none."""
        return self._load(role, Stage)

    def guided_stage(self, role: str) -> tuple[Stage, ClipScorer]:
        """The model with this role and the CLIP that guides it. Raises UserError."""
        return self._load(role, Stage, ("clip",)), self._load("clip", ClipScorer, (role,))

    @property
    def clip(self) -> ClipScorer:
        """The CLIP, loaded. Raises UserError if there is none."""
        return self._load("clip", ClipScorer)

    def free(self, keep: Collection[str] = ()) -> None:
        """Frees all loaded models except these roles; each is loaded again when needed."""
        self._loaded = {role: model for role, model in self._loaded.items() if role in keep}

    def _load(self, role: str, kind: Any, used_with: Collection[str] = ()) -> Any:
        if role not in self._loaded:
            self.config(role)
            if self._one_at_a_time:
                self.free(keep=used_with)
            self._loaded[role] = kind.load(self.runs[role], self._fsdp)
        return self._loaded[role]


def role_of(config: Config) -> str:
    """The role of a run's model."""
    if not isinstance(config.model, ModelConfig):
        return config.model.kind
    if config.model.image_embedding_width:
        return "decoder"
    size = "upsample" if config.model.low_res_px else "base"
    return f"{size}-inpaint" if config.model.inpaint else size
