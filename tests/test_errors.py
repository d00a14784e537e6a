"""How commands end: one line and the exit status."""

import io
import sys

import pytest

from glide_jax.errors import UserError, exit_on_user_error


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("--n 0: must be at least 1"), 2, "error: --n 0: must be at least 1\n"),
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
