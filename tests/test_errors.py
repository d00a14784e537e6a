"""How commands end: one line and the exit status."""

import errno
import io
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from glide_jax.errors import UserError, exit_on_user_error, memory_advice

ROOT = Path(__file__).parent.parent


def test_warnings_are_plain_whatever_libraries_have_set_up(monkeypatch):
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    with exit_on_user_error():
        logging.getLogger("glide_jax.data").warning("skipped a record")
    assert handler.stream.getvalue() == "skipped a record\n"


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("--n 0: must be at least 1"), 2, "error: --n 0: must be at least 1\n"),
        (OSError(errno.ENOSPC, "Disk full"), 2, "error: Disk full\n"),
        (PermissionError(errno.EACCES, "Denied", "x.png"), 2, "error: x.png: Denied\n"),
        (MemoryError(), 2, "error: out of memory: MemoryError\n"),
        (OSError(errno.ENOMEM, "Cannot fork"), 2, "error: out of memory: [Errno 12] Cannot fork\n"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 bytes\nsee the log"),
            2,
            "error: out of memory: RESOURCE_EXHAUSTED: 9 bytes\n",
        ),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (KeyboardInterrupt("run it again to resume"), 130, "interrupted: run it again to resume\n"),
    ],
)
def test_errors_and_ctrl_c_are_one_line(capsys, error, status, line):
    with pytest.raises(SystemExit) as ended, exit_on_user_error():
        raise error
    assert ended.value.code == status
    assert capsys.readouterr().err == line


def test_captions_are_printed_on_a_terminal_of_another_encoding(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", write_through=True)
    monkeypatch.setattr(sys, "stdout", terminal)
    with exit_on_user_error():
        print("é \u732b")
    assert terminal.buffer.getvalue() == b"\xe9 \\u732b\n"


@pytest.mark.parametrize("bug", [ValueError("x"), AssertionError(), OSError("x"), RuntimeError()])
def test_bugs_keep_their_traceback(bug):
    with pytest.raises(type(bug)) as raised, exit_on_user_error():
        raise bug
    assert raised.value is bug


def test_memory_advice_names_the_settings():
    @memory_advice("use fewer")
    def run(error):
        raise error

    with pytest.raises(UserError, match=r"^out of memory: use fewer \(RESOURCE_EXHAUSTED: 9\)$"):
        run(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9"))
    with pytest.raises(ValueError, match="x"):
        run(ValueError("x"))


@pytest.mark.parametrize(
    ("platforms", "error", "line"),
    [
        ("cuda", AssertionError(), "JAX_PLATFORMS=cuda: JAX finds no such device"),
        ("x", RuntimeError("Unable to initialize backend 'x'"), "JAX_PLATFORMS=x: JAX finds no"),
        ("", RuntimeError("Unable to initialize backend"), "JAX finds no device: Unable to"),
    ],
)
def test_a_device_that_is_not_there_is_named(platforms, error, line, monkeypatch, capsys):
    def devices():
        raise error

    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(SystemExit, match="2"), exit_on_user_error():
        jax.devices()
    assert capsys.readouterr().err.startswith(f"error: {line}")


# Python ignores the exceptions of such callbacks. JAX has one.
IN_A_CALLBACK = """
import gc, os, signal, time
gc.disable()
def interrupt(*_):
    gc.callbacks.clear()
    os.kill(os.getpid(), signal.SIGINT)
gc.callbacks.append(interrupt)"""


@pytest.fixture
def package(tmp_path):
    """A package of this name whose import is interrupted, beside the two scripts."""
    folder = tmp_path / "glide_jax"
    (folder / "sampling").mkdir(parents=True)
    for name in ("__init__.py", "errors.py"):
        shutil.copy(ROOT / "glide_jax" / name, folder)
    (folder / "sampling" / "pipeline.py").write_text(f"{IN_A_CALLBACK}\ngc.collect()\n")
    for name in ("train.py", "sample.py"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def run_python(folder, *words, redirect=""):
    """Runs Python in a folder, with shell redirections; Ctrl-C works, even if tests ignore it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = f"{shlex.join([sys.executable, *words])} {redirect}"
    return subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("words", [["train.py"], ["sample.py"], ["-m", "glide_jax.prepare"]])
def test_ctrl_c_during_imports_is_one_line(package, words):
    ended = run_python(package, *words)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")


def test_an_import_by_other_programs_keeps_their_handlers(package):
    for module, name in (("pipeline", "Glide"), ("unclip", "UnCLIP")):
        (package / "glide_jax" / "sampling" / f"{module}.py").write_text(f"{name} = None\n")
    command = "import glide_jax, signal; print(signal.getsignal(2).__name__)"
    assert run_python(package, "-c", command).stdout == "default_int_handler\n"


def test_ctrl_c_in_a_callback_ends_a_command():
    command = f"""{IN_A_CALLBACK}
from errors import exit_on_user_error
with exit_on_user_error():
    gc.collect()
    time.sleep(9)"""
    ended = run_python(ROOT / "glide_jax", "-c", command)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")


IN_A_COMMAND = """
import os, sys
from errors import exit_on_user_error
with exit_on_user_error():
    print("a warning", file=sys.stderr)
    print(*(os.fstat(number).st_mode for number in range(3)))
"""


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_standard_streams_may_be_closed(closed):
    redirect = f"{closed}>&-"
    ended = run_python(ROOT / "glide_jax", "-c", IN_A_COMMAND, redirect=redirect)
    assert ended.returncode == 0
    assert ended.stderr == ("" if closed == 2 else "a warning\n")
    assert len(ended.stdout.split()) == (0 if closed == 1 else 3)


@pytest.mark.parametrize(
    ("redirect", "status", "line"),
    [
        ("| exec true; exit ${PIPESTATUS[0]}", 141, ""),
        (">/dev/full", 2, f"error: {os.strerror(errno.ENOSPC)}\n"),
    ],
)
def test_an_output_that_takes_no_more_is_one_line_at_most(redirect, status, line):
    wait = "import time; time.sleep(0.1)"  # until the reader is gone
    ended = run_python(ROOT / "glide_jax", "-c", wait + IN_A_COMMAND, redirect=redirect)
    assert (ended.returncode, ended.stderr) == (status, f"a warning\n{line}")
