"""Checkpoints: damage to the newest one costs only that one."""

import errno
import itertools
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import gettempdir
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.kill_while_saving import SIZE, state_of
from helpers.tiny import get_config

from glide_jax import UserError
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.runs import fingerprint
from glide_jax.runs.checkpoint import Checkpoints
from glide_jax.runs.fingerprint import _fingerprints, fingerprints
from glide_jax.runs.folder import Run
from glide_jax.runs.paths import saved_steps

HOST = {"loader": {"examples": 8}, "log": {"window": {}}}
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run folder with checkpoints 1, 2 and 3."""
    run_dir = tmp_path_factory.mktemp("saved") / "run"
    (run_dir / "checkpoints").mkdir(parents=True)
    checkpoints = Checkpoints(run_dir, max_checkpoints=3)
    for step in (1, 2, 3):
        checkpoints.save(state_of(step), {"loader": {"batch": step}, "log": {"window": {}}})
    checkpoints.close()
    return run_dir


def restored(run_dir, kept=3):
    checkpoints = Checkpoints(run_dir, kept)
    like = state_of(0)
    state, host_state = checkpoints.restore(like, jax.tree.map(lambda x: x.sharding, like))
    step = int(state.step)
    jax.tree.map(np.testing.assert_array_equal, state, state_of(step))
    assert host_state["loader"] == {"batch": step}
    return step


def data_file(run_dir, step, item="params"):
    """The largest file of an item, which holds its arrays."""
    files = (run_dir / "checkpoints" / str(step) / item).rglob("*")
    return max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size)


def flip(path, rng, count=1):
    content = bytearray(path.read_bytes())
    for place in rng.sample(range(len(content)), min(count, len(content))):
        content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncate(path, rng):
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def test_a_fingerprint_depends_on_every_bit_and_not_on_the_sharding(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 24)).astype(np.float32)
    expected = fingerprints({"x": x})
    assert list(expected) == ["x"]
    monkeypatch.setattr(fingerprint, "ON_THE_HOST", 0)
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"))
    for spec in [("data",), ("fsdp", "data"), (None, ("data", "fsdp"))]:
        placed = jax.device_put(x, jax.NamedSharding(mesh, jax.P(*spec)))
        assert fingerprints({"x": placed}) == expected
    monkeypatch.undo()
    for bit in range(32):
        y = x.copy()
        y.view(np.uint32)[3, 5] ^= np.uint32(1 << bit)
        assert fingerprints({"x": y}) != expected
    for y in (x[::-1], x.T.reshape(x.shape), np.where(x == x[2, 2], -x, x)):
        assert fingerprints({"x": y}) != expected
    for kind in ("int32", "bfloat16", "uint8", "bool"):
        y = jnp.arange(3).astype(kind)
        assert fingerprints({"x": y}) != fingerprints({"x": y[::-1]})


def test_fingerprints_are_those_of_checkpoints_written_before():
    x = np.float32([[1.5, -2.0], [np.nan, 0.0], [3e38, -1e-40]])
    total = 0
    for index, bits in enumerate(x.view(np.uint32).ravel().tolist()):
        mixed = bits + index * 0x9E3779B1 & 0xFFFFFFFF
        for factor, shift in ((0x85EBCA6B, 13), (0xC2B2AE35, 16)):
            mixed = mixed * factor & 0xFFFFFFFF
            mixed ^= mixed >> shift
        total += mixed
    assert fingerprints({"x": x}) == {"x": total % 2**32}


@pytest.mark.parametrize("dtype", ["float32", "int32", "bfloat16", "uint8", "bool"])
def test_devices_and_the_host_have_the_same_fingerprints(dtype, monkeypatch):
    arrays = {str(shape): jnp.ones(shape, dtype) for shape in ((), (0, 3), (5,), (2, 3, 4, 5))}
    on_the_host = fingerprints(arrays)
    assert fingerprints({name: np.asarray(x) for name, x in arrays.items()}) == on_the_host
    monkeypatch.setattr(fingerprint, "ON_THE_HOST", -1)
    assert fingerprints(arrays) == on_the_host


def test_parameters_ema_and_moments_have_one_program_for_their_fingerprints(monkeypatch):
    monkeypatch.setattr(fingerprint, "ON_THE_HOST", 1)
    params = {name: jnp.full((3, size), size) for name, size in (("a", 5), ("b", 6), ("c", 7))}
    moments = optax.adam(0.1).init(params)
    compiled = _fingerprints._cache_size()
    found = fingerprints({"params": params, "ema": dict(params), "optimizer": moments})
    assert _fingerprints._cache_size() == compiled + 1
    names = [f"{part}/{name}" for part in ("ema", "params") for name in params]
    assert [name for name in found if name in names] == names
    assert found["ema/a"] == found["params/a"] == fingerprints({"a": np.asarray(params["a"])})["a"]


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_a_checkpoint_can_be_restored_on_any_number_of_devices(devices, tmp_path):
    def placed(state, devices):
        mesh = jax.make_mesh((devices,), ("fsdp",), devices=jax.devices()[:devices])
        shardings = jax.tree.map(
            lambda x: jax.NamedSharding(mesh, jax.P("fsdp") if x.size == SIZE else jax.P()),
            state,
        )
        return jax.device_put(state, shardings), shardings

    (tmp_path / "checkpoints").mkdir()
    checkpoints = Checkpoints(tmp_path, max_checkpoints=1)
    checkpoints.save(placed(state_of(3), 4)[0], {"loader": {"batch": 3}, "log": {}})
    checkpoints.close()
    like, shardings = placed(state_of(0), devices)
    found, host_state = Checkpoints(tmp_path, max_checkpoints=1).restore(like, shardings)
    assert host_state == {"loader": {"batch": 3}, "log": {}}
    assert jax.tree.map(lambda x: x.sharding, found) == shardings
    jax.tree.map(np.testing.assert_array_equal, found, state_of(3))


@pytest.mark.parametrize("damage", [flip, truncate, lambda path, rng: path.unlink()])
@pytest.mark.parametrize("item", ["params", "optimizer", "host"])
def test_a_damaged_checkpoint_is_moved_aside_and_the_previous_one_restored(
    saved, item, damage, tmp_path, capsys
):
    run_dir = tmp_path / "run"
    shutil.copytree(saved, run_dir)
    damage(data_file(run_dir, 3, item), random.Random(0))
    assert restored(run_dir) == 2
    (line,) = capsys.readouterr().err.splitlines()
    folder = run_dir / "checkpoints" / "3"
    assert line.startswith(f"warning: the checkpoint {folder} is damaged (")
    assert line.endswith("): moved to 3.damaged, using step 2")
    assert (run_dir / "checkpoints" / "3.damaged").is_dir()
    # The same step can be saved again and restored.
    checkpoints = Checkpoints(run_dir, max_checkpoints=3)
    checkpoints.save(state_of(3), {"loader": {"batch": 3}, "log": {}})
    checkpoints.close()
    assert restored(run_dir) == 3


def test_sampling_skips_a_damaged_checkpoint_without_moving_it(saved, tmp_path, capsys):
    run_dir = tmp_path / "run"
    shutil.copytree(saved, run_dir)
    flip(data_file(run_dir, 3, "optimizer"), random.Random(0))
    checkpoints = Checkpoints(run_dir)
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in state_of(0).ema.items()}
    ema = checkpoints.restore_ema(shapes)  # the EMA parameters are undamaged
    np.testing.assert_array_equal(ema["w"], state_of(3).ema["w"])
    flip(data_file(run_dir, 3, "ema"), random.Random(0))
    ema = checkpoints.restore_ema(shapes)
    np.testing.assert_array_equal(ema["w"], state_of(2).ema["w"])
    assert checkpoints.restored_step == 2
    assert "3 is damaged" in capsys.readouterr().err
    assert saved_steps(run_dir) == [3, 2, 1]


def test_if_all_checkpoints_are_damaged_no_file_is_changed(saved, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(saved, run_dir)
    for step in (1, 2, 3):
        truncate(data_file(run_dir, step), random.Random(step))
    files = sorted(run_dir.rglob("*"))
    for _ in range(2):
        with pytest.raises(UserError, match=f"every checkpoint in {run_dir}/checkpoints is damag"):
            restored(run_dir)
        assert sorted(run_dir.rglob("*")) == files


def test_an_error_while_a_checkpoint_is_written_does_not_lose_it(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    line = r"^NaN: .* keeps its last checkpoint \(step 1\)$"
    with pytest.raises(UserError, match=line), Checkpoints(tmp_path, 3) as checkpoints:
        checkpoints.save(state_of(1), HOST)
        raise UserError(f"NaN: {tmp_path} {checkpoints.kept()}")
    with pytest.raises(KeyboardInterrupt), Checkpoints(tmp_path, 3) as checkpoints:
        checkpoints.save(state_of(2), HOST)
        raise KeyboardInterrupt
    assert saved_steps(tmp_path) == [2, 1]


def test_a_failed_write_does_not_hide_the_error_that_ends_a_run(tmp_path, capsys, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    line = f"^NaN: {tmp_path} has no checkpoint$"
    with pytest.raises(UserError, match=line), Checkpoints(tmp_path, 3) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "wait_until_finished", Mock(side_effect=FULL))
        raise UserError(f"NaN: {tmp_path} {checkpoints.kept()}")
    assert capsys.readouterr().err == (
        f"warning: cannot save checkpoints in {tmp_path}/checkpoints: {FULL.strerror}\n"
    )


def test_host_metadata_without_a_state_are_damage(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with Checkpoints(tmp_path, 3) as checkpoints:
        checkpoints.save(state_of(1), {"loader": {}})
    with pytest.raises(UserError, match=r"is damaged, .* lack the state of the loader or the log"):
        restored(tmp_path)


@pytest.mark.slow
def test_damage_to_any_file_of_a_checkpoint_is_detected_or_harmless(saved, tmp_path):
    rng = random.Random(0)
    newest = saved / "checkpoints" / "3"
    found = {2: 0, 3: 0}
    damages = itertools.cycle((flip, truncate, flip, lambda path, rng: path.unlink()))
    for file in sorted(f.relative_to(saved) for f in newest.rglob("*") if f.stat().st_size):
        if (saved / file).is_dir():
            continue
        run_dir = tmp_path / "run"
        shutil.copytree(saved, run_dir)
        next(damages)(run_dir / file, rng)
        # Either the damage changes no value, or the previous checkpoint is restored.
        found[restored(run_dir)] += 1
        shutil.rmtree(run_dir)
    assert found[2] > 10


@pytest.mark.slow
def test_a_kill_at_any_time_loses_no_checkpoint(python, tmp_path):
    process = python("-m", "tests.helpers.kill_while_saving", tmp_path / "run", 50)
    output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    kills, interrupted, lost = (int(word) for word in output.split() if word.isdigit())
    assert (kills, lost) == (50, 0)
    assert interrupted > 10


WITHOUT_PERMISSION = """
import os, sys
sys.path[:0] = ["tests"]
from pathlib import Path
from helpers.kill_while_saving import SIZE, state_of
from helpers.tiny import get_config
from glide_jax import UserError
from glide_jax.runs.checkpoint import Checkpoints
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.runs.folder import Run
run_dir = Path(sys.argv[1])
checkpoints = Checkpoints(run_dir, max_checkpoints=1)
state, tokenizer = state_of(1), Tokenizer.train(["a star"], 300)
(run_dir / "checkpoints").chmod(0o555)
run_dir.chmod(0o555)
if os.getuid() == 0:  # root can write everywhere
    os.setuid(65534)
for attempt in (
    lambda: (checkpoints.save(state, {}), checkpoints.close()),
    lambda: Run.create(run_dir, get_config(), tokenizer),
    lambda: Run.create(run_dir / "new", get_config(), tokenizer),
):
    try:
        attempt()
        print("written")
    except UserError as error:
        print(error)
"""


def test_a_read_only_run_folder_is_named_in_the_error(tmp_path):
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints").mkdir(parents=True)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to(gettempdir()) and folder != Path(gettempdir()):
            folder.chmod(0o755)  # pytest's folders are private
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_PERMISSION, run_dir],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    save, again, new = process.stdout.splitlines()
    assert save == f"cannot save checkpoints in {run_dir}/checkpoints: no permission to write"
    assert again.startswith(f"cannot write the run folder {run_dir}: ")
    assert new.startswith(f"cannot write the run folder {run_dir}/new: ")


def test_a_run_folder_below_a_file_is_named_in_the_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert saved_steps(tmp_path / "file" / "run") == []
    with pytest.raises(UserError, match=r"cannot write the run folder .*Not a directory"):
        Run.create(tmp_path / "file" / "run", get_config(), Tokenizer.train(["a star"], 300))
