"""Eight fake CPU devices for all tests, so that sharding is tested wherever the tests run.

Most of the tests' time is compilation, so XLA is asked for quick compilation instead of fast code,
and compiled programs are kept in .compiled/ for the next run. GLIDE_JAX_COMPILED names another
folder for them.
"""

import fcntl
import gc
import hashlib
import importlib.metadata
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
JAX_VERSION = importlib.metadata.version("jax")


def _compiled_folder() -> Path:
    """A folder for this version of JAX and this kind of processor: compiled code fits no other."""
    cpu = Path("/proc/cpuinfo")
    text = cpu.read_text(encoding="utf-8") if cpu.exists() else os.uname().machine
    lines = set(text.splitlines())
    kind = sorted(line for line in lines if line.startswith(("model name", "flags", "Features")))
    digest = hashlib.sha256("\n".join(kind).encode()).hexdigest()[:12]
    return ROOT / ".compiled" / f"jax-{JAX_VERSION}-{digest}"


# Test processes, and the scripts that they start, share what they have compiled.
OURS = _compiled_folder()
COMPILED = os.environ.setdefault("GLIDE_JAX_COMPILED", str(OURS))
MAX_COMPILED_BYTES = 2**30
os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if JAX_VERSION.startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"  # later versions have no other emitters
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}"
# Threads of several test processes would wait for each other: 15 s instead of 1 for eigenvalues.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from helpers import annotations

annotations.install()

import jax
import pytest
from helpers.model_set import write_set
from hypothesis import settings
from PIL import Image

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.devices()  # fixes their number: commands that run in this process cannot change it

# Property tests have no time limit, since the first example compiles, and draw the same examples
# every time, so that whoever runs the tests again sees the same failure.
settings.register_profile("same_every_time", deadline=None, derandomize=True)
settings.load_profile("same_every_time")

COLORS = {
    "red": (220, 30, 30),
    "green": (30, 180, 30),
    "blue": (30, 30, 220),
    "yellow": (230, 220, 20),
    "black": (10, 10, 10),
    "white": (245, 245, 245),
    "cyan": (20, 210, 220),
    "pink": (240, 60, 200),
}


@pytest.fixture(scope="session")
def color_folder(tmp_path_factory):
    """Eight images of one color each, with captions beside them."""
    folder = tmp_path_factory.mktemp("colors")
    for name, rgb in COLORS.items():
        Image.new("RGB", (12, 10), rgb).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"all {name}")
    return folder


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder for all the processes that pytest-xdist spreads the tests over."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def python():
    """Starts a script of the project as a user would: `python("train.py", "--config", ...)`."""

    def start(*arguments, environment=None, **options):
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"} | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    return start


@pytest.fixture(scope="session")
def train_flags(color_folder):
    """The flags of train.py for the tiny configuration on the eight colors."""

    def flags(run_dir, *more):
        data = ("--data.source", "folder", color_folder)
        run = ("--train.run-dir", run_dir, "--data.train-split", "all")
        run += ("--data.validation-split", "all")
        config = ("--config", Path(__file__).parent / "helpers" / "tiny.py")
        return [*map(str, (*config, *data, *run, *more))]

    return flags


@pytest.fixture(scope="session")
def train(python, train_flags):
    """Starts `train.py` with the tiny configuration on the eight colors."""

    def start(run_dir, *flags, environment=None, **options):
        # One device: more take longer for so small a model.
        environment = {"JAX_NUM_CPU_DEVICES": "1"} | (environment or {})
        return python("train.py", *train_flags(run_dir, *flags), environment=environment, **options)

    return start


@pytest.fixture(scope="session")
def trained_run(train, shared_folder):
    """A run folder whose model has memorized the eight colors."""
    run_dir = shared_folder / "trained_run"
    with made_once(run_dir) as to_make:
        if to_make:
            process = train(run_dir)
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors
    return run_dir


@pytest.fixture(scope="session")
def models(trained_run, shared_folder):
    """A folder of models for everything: the trained base, and random others that fit it."""
    folder = shared_folder / "models"
    with made_once(folder) as to_make:
        if to_make:
            write_set(folder)
            (folder / "base").symlink_to(trained_run)
    return folder


@pytest.fixture(scope="session")
def efficientnet():
    """The default feature extractor, on one device, 4 images at a time."""
    from glide_jax.evaluation.features import load_extractor

    return load_extractor(batch_size=4, devices=jax.devices()[:1])


@pytest.fixture(scope="session")
def inception():
    """FID's Inception with weights by rule, by name of the resizing: one compiled program.

    2 images at a time on one device; `inception("torch")` is a feature extractor.
    """
    from helpers.rule_weights import inception_extractor

    return inception_extractor


def pytest_collection_modifyitems(items):
    """Slow tests first, then those that need the trained run.

    Short tests then fill the time of whichever process is done earlier, and the other process is
    not among the tests that wait while one of them trains.
    """

    def order(item):
        return item.get_closest_marker("slow") is None, "trained_run" not in item.fixturenames

    items.sort(key=order)


def pytest_collection_finish():
    """Fewer passes of the garbage collector, which takes a twentieth of the time of tracing."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


def pytest_unconfigure(config):
    """Removes the oldest compiled programs beyond MAX_COMPILED_BYTES, from our own folder only.

    JAX's limit would take a lock for every program, and warn where several processes share one.
    """
    gc.freeze()  # pytest's last collections would take seconds
    if hasattr(config, "workerinput") or Path(COMPILED) != OURS or not OURS.is_dir():
        return
    files = sorted(((f.stat(), f) for f in OURS.iterdir()), key=lambda file: -file[0].st_mtime)
    total = 0
    for stat, file in files:
        total += stat.st_size
        if total > MAX_COMPILED_BYTES:
            file.unlink(missing_ok=True)


@contextmanager
def made_once(folder):
    """Yields whether to make a folder: only for the first of pytest-xdist's processes."""
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not folder.exists()
