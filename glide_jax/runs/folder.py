"""A run folder, opened to read a model or created to train one; see paths.py for its files."""

import contextlib
import dataclasses
import hashlib
import operator
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from glide_jax.config import Config
from glide_jax.config.checks import Settings
from glide_jax.config.serialize import to_json
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.tokenizers.build import tokenizer_class
from glide_jax.errors import UserError
from glide_jax.models.build import build_network
from glide_jax.models.network import Network
from glide_jax.parallel.process_group import ProcessGroup
from glide_jax.pretrained.weight_files import read_tensors, require_finite
from glide_jax.runs.kept import chosen_step, split_checkpoint
from glide_jax.runs.paths import (
    CHECKPOINTS,
    CONFIG,
    METRICS,
    PROFILE,
    SAMPLES,
    TENSORBOARD,
    TOKENIZER,
    WEIGHTS,
    resolve_run,
    saved_steps,
)
from glide_jax.runs.state import require_same_shapes
from glide_jax.shapes import Params
from glide_jax.storage import AnyPath, storage_errors, write_atomically

FILE_VISIBLE_S = 60
"""Time within which a network file system shows a new file to other machines."""

CHANGEABLE = {
    "model.dtype",
    "model.remat",
    "model.unet.dropout",
    "diffusion.weighting",
    "diffusion.min_snr_gamma",
}
"""Settings of model and noise that may differ when a run resumes: no parameter depends on them."""


@dataclass(frozen=True)
class Run:
    """A trained model on storage: the only reader of run folders.

    Opening reads the configuration; tokenizer and weights are read when first needed.
    """

    path: AnyPath
    config: Config
    step: int | None = None
    """Step of the checkpoint to read; None: the newest."""

    @classmethod
    def open(cls, folder: str | AnyPath) -> "Run":
        """Opens a run folder with checkpoints or exported weights.

        Args:
            folder: its path, or a shipped model's name such as "demo/base"; see `resolve_run`. The
                path of one of its checkpoints, RUN/checkpoints/STEP or RUN/checkpoints/best, names
                the one to read.

        Raises:
            UserError: not a run folder, or one with links or special files, or its configuration
                cannot be read; or it has no such checkpoint.
        """
        path, checkpoint = split_checkpoint(resolve_run(folder))
        if not path.is_dir():
            raise UserError(f"{path} is not a folder")
        has_model = (path / CHECKPOINTS).is_dir() or (path / WEIGHTS).is_file()
        if not (path / CONFIG).is_file() or not has_model:
            runs = sorted(config.parent.name for config in path.glob(f"*/{CONFIG}"))
            if runs and not (path / CONFIG).exists():
                raise UserError(f"{path} contains run folders: give one of {', '.join(runs)}")
            raise UserError(
                f"{path} is not a run folder: it needs {CONFIG} and {CHECKPOINTS}/ or {WEIGHTS} "
                "(give a folder that train.py or glide_jax.export wrote)"
            )
        _require_plain_files(path)
        config = Config.load(path / CONFIG)
        return cls(path, config, chosen_step(path, checkpoint, config.train.best_metric))

    @classmethod
    def open_all(cls, folder: str | AnyPath) -> list["Run"]:
        """Opens a run folder, or every run folder in a folder of models. Raises as `open`."""
        path = resolve_run(folder)
        if (path / CONFIG).exists():
            return [cls.open(path)]
        found = sorted(config.parent for config in path.glob(f"*/{CONFIG}"))
        return [cls.open(run) for run in found or [path]]

    @classmethod
    def create(cls, folder: AnyPath, config: Config, tokenizer: Tokenizer | None) -> "Run":
        """Creates a run folder, or updates that of a run which can resume with `config`.

        Settings of the loop, the optimizer, the data and sampling may change when a run resumes.
        Those of the model, the noise process and train.trainable may not: parameters and optimizer
        state depend on them. A model without captions has no tokenizer.

        Raises:
            UserError: the folder belongs to a run with other such settings, or holds only weights
                or links, or cannot be written.
        """
        _require_plain_files(folder)
        _require_resumable(folder, config)
        with storage_errors("write the run folder", folder):
            (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
            write_atomically(folder / CONFIG, (config.to_json() + "\n").encode())
        if tokenizer is not None:
            tokenizer.save(folder / TOKENIZER)
        return cls(folder, config)

    @classmethod
    def create_shared(
        cls,
        folder: AnyPath,
        config: Config,
        tokenizer: Callable[[], Tokenizer],
        group: ProcessGroup,
    ) -> "Run":
        """Creates a run folder in the lead; the other processes wait, then open it.

        Args:
            folder, config: see `create`.
            tokenizer: makes the tokenizer; called by the lead.
            group: all processes of the run.

        Raises:
            UserError: as `create`; or a process does not see the folder of the lead.
        """
        if group.lead:
            cls.create(folder, config, tokenizer())
        group.barrier()
        if not group.lead:
            require_shared(folder, config)
        return cls(folder, config)

    @cached_property
    def network(self) -> Network:
        """The network of the configuration."""
        return build_network(self.config.model)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer. Raises UserError if it cannot be read or has too many entries."""
        tokenizer = tokenizer_class(self.config.model).load(self.path / TOKENIZER)
        most = self.config.model.text.vocab_size
        if tokenizer.vocab_size > most:
            raise UserError(
                f"{self.path / TOKENIZER} has {tokenizer.vocab_size:,} entries, but "
                f"model.text.vocab_size is {most:,}: it is another model's"
            )
        return tokenizer

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the model: its EMA parameters, network and noise process, 16 digits.

        It is of the parameters that `weights` has returned, or else would return now; training may
        save others in between. It is read without the parameters.

        Raises:
            UserError: as `weights`.
        """
        file = self.path / WEIGHTS
        if self.step is None and file.exists():
            with storage_errors("read", file), file.open("rb") as opened:
                weights = hashlib.file_digest(opened, "sha256").hexdigest()
            return self._fingerprint(weights)
        from glide_jax.runs.checkpoint import Checkpoints

        with contextlib.closing(Checkpoints(self.path, step=self.step)) as checkpoints:
            return self._fingerprint(checkpoints.ema_fingerprint())

    @property
    def clip_fingerprint(self) -> str:
        """A CLIP's fingerprint, by which other models know it: an exported CLIP keeps its run's.

        Raises:
            UserError: as `weights`.
        """
        return self.config.train.clip_fingerprint or self.fingerprint

    def record_clip(self, fingerprint: str) -> None:
        """Records in the configuration the CLIP that a published model was trained with.

        Args:
            fingerprint: of the CLIP, see `clip_fingerprint`.

        Raises:
            UserError: the folder cannot be written.
        """
        train = dataclasses.replace(self.config.train, clip_fingerprint=fingerprint)
        config = dataclasses.replace(self.config, train=train)
        with storage_errors("write the run folder", self.path):
            write_atomically(self.path / CONFIG, (config.to_json() + "\n").encode())

    def _fingerprint(self, weights: str) -> str:
        """The fingerprint, given a digest of the parameters."""
        settings = (to_json(self.config.model), to_json(self.config.diffusion))
        return hashlib.sha256("\n".join((weights, *settings)).encode()).hexdigest()[:16]

    def weights(self, shardings: Mapping[str, jax.sharding.Sharding] | None = None) -> Params:
        """The EMA parameters in float32: exported ones if present, else the newest checkpoint's.

        Args:
            shardings: by parameter name; this process's first device unless given.

        Raises:
            UserError: there are none, they cannot be read or are not finite, or they do not match
                the configuration.
        """
        shapes = self.network.shapes
        file = self.path / WEIGHTS
        if self.step is not None or not file.exists():
            # A late import: orbax is slow to import, and exported weights do not need it.
            from glide_jax.runs.checkpoint import Checkpoints

            with contextlib.closing(Checkpoints(self.path, step=self.step)) as checkpoints:
                params = checkpoints.restore_ema(shapes, shardings)
                self.__dict__["fingerprint"] = self._fingerprint(checkpoints.ema_fingerprint())
            for name, value in params.items():
                for shard in value.addressable_shards:
                    require_finite(np.asarray(shard.data), f"the checkpoint of {self.path}: {name}")
            return params
        found = read_tensors(file)
        require_same_shapes(shapes, found, f"the weights {file}")
        return jax.device_put(found, jax.local_devices()[0] if shardings is None else shardings)


def _require_plain_files(folder: AnyPath) -> None:
    """Raises UserError for links, pipes and devices among the files that are read or written.

    A folder from others could make the program read, change or wait for any file of this machine.
    """
    if not isinstance(folder, Path):
        return
    written = (METRICS, SAMPLES, TENSORBOARD, PROFILE)
    for path in (folder / name for name in (CONFIG, WEIGHTS, TOKENIZER, CHECKPOINTS, *written)):
        below = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
        for one in (path, *below):
            # Training deletes old checkpoints; a run folder below a file is refused later.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                mode = one.lstat().st_mode
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                    kind = "a link" if stat.S_ISLNK(mode) else "not a regular file"
                    raise UserError(
                        f"{one} is {kind}, which a run folder must not contain: copy the folder "
                        "with cp -rL"
                    )


def _require_resumable(folder: AnyPath, config: Config) -> None:
    """Raises UserError if a run folder exists that cannot resume with this configuration."""
    with storage_errors("read", folder):
        exported = (folder / WEIGHTS).exists() and not (folder / CHECKPOINTS).exists()
        saved = [folder / CHECKPOINTS / str(step) for step in saved_steps(folder)]
        has_state = any((path / "optimizer").exists() for path in saved)
    if exported or (saved and not has_state):
        raise UserError(
            f"{folder} holds only weights, without a train state to resume from: give another "
            f"--train.run-dir, and --train.init-from {folder} to start from these weights"
        )
    if not saved:
        return
    before = Config.load(folder / CONFIG)
    clips = {c.train.clip_fingerprint for c in (before, config)} - {""}
    if len(clips) > 1:
        raise UserError(
            f"train.clip_run ({config.train.clip_run}) is not the CLIP with which the run in "
            f"{folder} was started: give that one, or another --train.run-dir"
        )
    for part in ("model", "diffusion", "train.trainable", "optim.first_moment_dtype"):
        old, new = (operator.attrgetter(part)(c) for c in (before, config))
        difference = _first_difference(old, new, part)
        if difference is not None:
            setting, old, new = difference
            raise UserError(
                f"{setting} is {new}, but the run in {folder} was started with {old}: "
                "give another --train.run-dir, or the same setting"
            )


def require_shared(folder: AnyPath, config: Config) -> None:
    """Checks in every other process that it sees the folder that the lead has created.

    Raises:
        UserError: it does not.
    """
    deadline = time.monotonic() + FILE_VISIBLE_S
    while not (folder / CONFIG).is_file() or Config.load(folder / CONFIG) != config:
        if time.monotonic() < deadline:
            time.sleep(0.2)
            continue
        raise UserError(
            f"{folder} differs from the folder that process 0 wrote: give a --train.run-dir on "
            "storage that all processes share"
        )


def _first_difference(old: Any, new: Any, name: str) -> tuple[str, Any, Any] | None:
    if name in CHANGEABLE:
        return None
    if not isinstance(old, Settings):
        return None if old == new else (name, old, new)
    if old.kind != new.kind:
        return f"{name}.kind", old.kind, new.kind
    fields: Any = dataclasses.fields(old)  # type: ignore[arg-type]
    for field in fields:
        found = _first_difference(
            getattr(old, field.name), getattr(new, field.name), f"{name}.{field.name}"
        )
        if found is not None:
            return found
    return None
