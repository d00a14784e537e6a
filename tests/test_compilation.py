"""Where compiled programs are kept between runs."""

import jax
import pytest

from glide_jax import Glide
from glide_jax.compilation import timed_compilation


@pytest.fixture
def kept(monkeypatch):
    """JAX's folder for compiled programs after models are loaded, given its setting before."""
    before = jax.config.jax_compilation_cache_dir
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")

    def load(given):
        jax.config.update("jax_compilation_cache_dir", given)
        Glide.load("demo/base")
        return jax.config.jax_compilation_cache_dir

    yield load
    jax.config.update("jax_compilation_cache_dir", before)


def test_models_from_python_keep_their_programs_as_commands_do(kept, monkeypatch):
    assert kept(None) == "/home/me/.cache/glide_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "~/xdg")
    assert kept(None) == "/home/me/xdg/glide_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # KeyError: a user without an entry
    assert kept(None) == ""


@pytest.mark.parametrize(
    ("given", "expected"), [("/programs", "/programs"), ("~/jax", "/home/me/jax"), ("", "")]
)
def test_a_folder_of_the_users_own_stays(kept, given, expected):
    assert kept(given) == expected


def test_compilation_is_timed():
    double = jax.jit(lambda x: 2 * x)
    with timed_compilation() as compile_s:
        double(1.0)
        once = compile_s()
        double(2.0)
        assert 0 < once == compile_s()
    jax.jit(lambda x: 3 * x)(1.0)
    assert compile_s() == once
