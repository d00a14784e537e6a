"""Tests that compile for NVIDIA GPUs, without one: they need the CUDA plugin."""

import importlib.util

import pytest

with_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="needs the CUDA compiler: make test-cuda",
)
