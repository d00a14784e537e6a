"""A bucket of Google Cloud Storage on this machine: gcp-storage-emulator, with generations.

    python -m tests.bucket 9000

An object's generation is new with every write. TensorStore writes only if it is still the one that
it read, which the emulator by itself neither tells nor minds. `environment` is what makes libraries
talk to it.
"""

import logging
import sys
from functools import partial
from http.server import HTTPServer
from urllib.parse import parse_qs, unquote, urlparse

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

BUCKET = "bucket"
OBJECTS = f"/b/{BUCKET}/o"


def environment(port: int) -> dict[str, str]:
    """Of a process whose gs:// is the server at this port."""
    address = f"http://127.0.0.1:{port}"
    return {
        "STORAGE_EMULATOR_HOST": address,  # gcsfs
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it asks Google for the kind of bucket
        "NO_GCE_CHECK": "true",  # nobody else has credentials
    }


class Handler(RequestHandler):
    """The emulator's, minding `ifGenerationMatch` and `ifGenerationNotMatch`."""

    def parse_request(self) -> bool:
        """Answers by itself, and returns False, where a condition is not met."""
        if not super().parse_request():
            return False
        conditions = parse_qs(urlparse(self.path).query)
        (match,) = conditions.get("ifGenerationMatch", [None])
        (other,) = conditions.get("ifGenerationNotMatch", [None])
        now = self._generation()
        if match in (None, now) and other != now:
            return True
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(304 if other == now else 412)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def end_headers(self) -> None:
        if self.command == "GET":
            self.send_header("x-goog-generation", self._generation())
        super().end_headers()

    def _generation(self) -> str:
        """That of the object that is asked for; 0 if there is none."""
        url = urlparse(self.path)
        name = unquote(url.path.rpartition(OBJECTS + "/")[2])
        (name,) = parse_qs(url.query).get("name", [name])
        try:
            return self.storage.get_file_obj(BUCKET, name)["generation"]
        except NotFound:
            return "0"


class Server(HTTPServer):
    """With room for all that TensorStore asks at once."""

    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing: gcsfs hangs up on what it does not need any more."""


if __name__ == "__main__":
    logging.disable()
    storage = Storage(use_memory_fs=True)
    create_bucket(BUCKET, storage)
    server = Server(("127.0.0.1", int(sys.argv[1])), partial(Handler, storage))
    print(server.server_port, flush=True)
    server.serve_forever()
