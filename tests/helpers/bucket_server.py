"""A local Google Cloud Storage bucket: gcp-storage-emulator with object generations.

    python -m tests.helpers.bucket_server 9000

Every write changes an object's generation. TensorStore makes writes conditional on the generation
that it read, which the emulator alone does not support.
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
    """Environment variables that direct gs:// to the server at this port."""
    address = f"http://127.0.0.1:{port}"
    return {
        "STORAGE_EMULATOR_HOST": address,  # gcsfs
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks Google for the type of bucket
        "NO_GCE_CHECK": "true",  # no search for credentials
    }


class Handler(RequestHandler):
    """The emulator's handler with support for `ifGenerationMatch` and `ifGenerationNotMatch`."""

    def parse_request(self) -> bool:
        """Responds and returns False if a condition is not met."""
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
        """The generation of the requested object, 0 if it does not exist."""
        url = urlparse(self.path)
        name = unquote(url.path.rpartition(OBJECTS + "/")[2])
        (name,) = parse_qs(url.query).get("name", [name])
        try:
            return self.storage.get_file_obj(BUCKET, name)["generation"]
        except NotFound:
            return "0"


class Server(HTTPServer):
    """A server with a queue long enough for TensorStore's concurrent requests."""

    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        """Prints nothing: gcsfs closes connections that it no longer needs."""


if __name__ == "__main__":
    logging.disable()
    storage = Storage(use_memory_fs=True)
    create_bucket(BUCKET, storage)
    server = Server(("127.0.0.1", int(sys.argv[1])), partial(Handler, storage))
    print(server.server_port, flush=True)
    server.serve_forever()
