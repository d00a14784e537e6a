"""Memory that CPU programs free stays with the process."""

import ctypes
import importlib.metadata
import importlib.util
from unittest.mock import Mock

import jax
import pytest

from glide_jax.parallel.host_memory import keep_freed_memory


@pytest.fixture
def mallopt(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    library = Mock(spec=["mallopt"])
    return library.mallopt


@pytest.mark.parametrize(
    ("platforms", "plugins", "keeps"),
    [("cpu", ["cuda"], True), ("cuda,cpu", [], False), (None, [], True), (None, ["cuda"], False)],
)
def test_memory_is_kept_where_jax_computes_on_the_cpu(
    mallopt, monkeypatch, platforms, plugins, keeps
):
    before = jax.config.values["jax_platforms"]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: plugins)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    try:
        jax.config.update("jax_platforms", platforms)
        keep_freed_memory()
    finally:
        jax.config.update("jax_platforms", before)
    assert bool(mallopt.call_count) == keeps


def test_a_c_library_without_mallopt_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Mock(spec=[]))
    keep_freed_memory()
