"""Fixtures for tests in a bucket. Import them by name; `folder` needs `bucket`."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from helpers.bucket_server import BUCKET, environment

from glide_jax.storage import AnyPath, path_of


@pytest.fixture(scope="session")
def bucket() -> Iterator[AnyPath]:
    """An empty bucket, for this process and for processes with the same environment."""
    command = [sys.executable, "-m", "tests.helpers.bucket_server", "0"]
    root = Path(__file__).parent.parent.parent
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        os.environ |= environment(int(server.stdout.readline()))
        yield path_of(f"gs://{BUCKET}")
        server.terminate()


@pytest.fixture
def folder(bucket: AnyPath, request: pytest.FixtureRequest) -> AnyPath:
    """A folder in the bucket, one per test."""
    return bucket / request.node.name


def files(folder: AnyPath) -> dict[str, bytes]:
    """All files in a folder, by name."""
    filesystem, root = fsspec.url_to_fs(str(folder))
    found = filesystem.find(root)
    return {name.removeprefix(root): filesystem.cat_file(name) for name in found}
