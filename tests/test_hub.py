"""Files on the Hugging Face hub, from a server on this machine."""

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from glide_jax.convert.__main__ import main
from glide_jax.errors import UserError
from glide_jax.evaluation.image_sets import Preparation
from glide_jax.evaluation.reference import open_reference
from glide_jax.hub import fetched, local_file
from glide_jax.pretrained.weight_files import write_tensors

COMMIT = "0123456789" * 4
CONTENT = b"some weights"
FILES = {
    f"/org/repo/resolve/{revision}/{file}": CONTENT
    for revision in ("main", "v2", COMMIT)
    for file in ("w.pt", "in/w.pt")
} | {f"/datasets/org/data/resolve/{revision}/w.pt": b"data" for revision in ("main", COMMIT)}
FAILURES = {
    "/org/repo/": (404, "EntryNotFound"),
    "/org/repo/resolve/v3": (404, "RevisionNotFound"),
    "/org/gated": (403, "GatedRepo"),
    "/org/private": (401, "RepoNotFound"),
    "/org/broken": (418, ""),
}
"""Status and the hub's header by the longest prefix of the path."""


REQUESTS: list[str] = []


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does."""

    def do_GET(self) -> None:
        REQUESTS.append(f"{self.command} {self.path}")
        content = FILES.get(self.path)
        prefix = max(
            (p for p in FAILURES if self.path.startswith(p)), key=len, default="/org/repo/"
        )
        status, code = (200, "") if content else FAILURES.get(prefix, (404, ""))
        self.send_response(status)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{len(content or b"")}"')
        self.send_header("Content-Length", str(len(content or b"")))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if content and self.command == "GET":
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The requests to a hub whose cache is empty."""
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    place = f"http://127.0.0.1:{server.server_port}"
    template = place + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", place)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    REQUESTS.clear()
    yield REQUESTS
    server.shutdown()
    thread.join()
    server.server_close()


def refused(place):
    with pytest.raises(UserError) as error:
        local_file(place)
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith(f"{place}: ")
    return line.removeprefix(f"{place}: ")


def test_files_are_downloaded_once(hub, tmp_path, capsys, monkeypatch):
    url = "hf://org/repo/in/w.pt"
    path = local_file(url)
    assert (path.read_bytes(), path.name) == (CONTENT, "w.pt")
    assert path.is_relative_to(tmp_path / "cache")
    assert capsys.readouterr().out == f"downloading {url} (0.0 MB)\n"
    assert local_file(Path(url)) == local_file("hf://org/repo@v2/in/w.pt") == path
    assert capsys.readouterr().out == ""
    assert [request for request in hub if request.startswith("GET /org")] == [
        "GET /org/repo/resolve/main/in/w.pt"
    ]
    assert local_file("hf://datasets/org/data/w.pt").read_bytes() == b"data"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.clear()
    assert local_file(url) == path
    assert "HF_HUB_OFFLINE forbids downloads" in refused("hf://org/repo/w.pt")
    assert hub == []


def test_files_that_the_hub_does_not_give(hub):
    assert refused("hf://org/repo/no.pt") == "org/repo has no such file"
    assert refused("hf://org/repo@v3/w.pt") == "org/repo has no such revision"
    assert refused("hf://org/private/w.pt").startswith("no repository org/private, or a private")
    assert refused("hf://org/gated/w.pt").startswith("its authors must grant access: ask at http")
    assert "cannot be reached: check the network" in refused("hf://org/broken/w.pt")


def test_without_a_connection_the_cache_is_read(hub, monkeypatch):
    path = local_file("hf://org/repo/w.pt")
    with socket.socket() as closed:  # a port on which nothing listens
        closed.bind(("127.0.0.1", 0))
        place = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", place)
        assert local_file("hf://org/repo/w.pt") == path
        started = time.perf_counter()
        expected = f"not in the hub's cache, and {place} cannot be reached: check the network, or"
        assert refused("hf://org/repo/in/w.pt").startswith(expected)
    assert time.perf_counter() - started < 5  # the hub's library would retry


@pytest.mark.parametrize(
    "place",
    ["hf://", "hf://org", "hf://org/repo", "hf://org/repo@/w.pt", "hf://a b/c/w.pt",
     "hf://buckets/org/repo/w.pt", "hf://org/repo@main", "hf://org//repo/w.pt"],
)  # fmt: skip
def test_urls_that_are_not_of_a_file(place):
    assert refused(place).startswith("use hf://ORG/REPO/FILE, or ORG/REPO@REVISION/FILE")


def test_names_do_not_lead_out_of_the_cache(hub, tmp_path):
    for name in ("../../../x.pt", "a/../../x.pt"):
        assert refused(f"hf://org/repo/{name}")
    assert not list(tmp_path.rglob("*.pt"))


def test_local_files_contact_nothing(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_file("~/w.pt") == tmp_path / "w.pt"
    assert local_file("no/such.pt") == Path("no/such.pt")
    assert local_file(r"C:/w.pt") == Path("C:/w.pt")
    for url in ("gs://bucket/w.pt", "https://host/w.pt"):
        assert refused(url) == "use a local file, or hf://ORG/REPO/FILE"
        assert fetched(url) == url
    assert hub == []


def test_statistics_are_read_from_the_hub(hub, tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", mu=np.zeros(2), sigma=np.eye(2))
    content = (tmp_path / "x.npz").read_bytes()
    monkeypatch.setitem(FILES, "/datasets/org/data/resolve/main/x.npz", content)
    url = "hf://datasets/org/data/x.npz"
    images, found = open_reference([url], "", Preparation(), None, "inception")
    assert images is None
    assert found.statistics.mu.shape == (2,)


def test_weights_are_converted_from_the_hub(hub, tmp_path, monkeypatch):
    write_tensors(tmp_path / "x.npz", {"x": np.zeros(3, np.float32)})
    content = (tmp_path / "x.npz").read_bytes()
    for revision in ("main", COMMIT):
        monkeypatch.setitem(FILES, f"/org/repo/resolve/{revision}/x.npz", content)
    with pytest.raises(UserError, match=r"cache/.*/x\.npz: neither a GLIDE model"):
        main(["hf://org/repo/x.npz", "--to", str(tmp_path / "runs")])
