"""A network between a run's lead and another process, which can be cut as a cable is.

Nothing is closed: what is sent goes nowhere, and neither side is told.
"""

import json
import socket
import threading
import time


class Network:
    """Stands between the lead's coordinator port, and JAX's, and another process.

    Args:
        lead_port: where the lead listens, on this machine; give the other process `port` instead.
    """

    def __init__(self, lead_port: int) -> None:
        self.cut, self.lead_port = threading.Event(), lead_port
        self._way_to_jax = 0
        self.port = self._open_way(lead_port, self._with_way_to_jax)

    def _open_way(self, to_port: int, change=bytes) -> int:
        server = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, args=(server, to_port, change), daemon=True).start()
        return server.getsockname()[1]

    def _serve(self, server: socket.socket, to_port: int, change) -> None:
        while True:
            near, _ = server.accept()
            far = None
            while far is None:
                try:
                    far = socket.create_connection(("127.0.0.1", to_port))
                except ConnectionRefusedError:  # not there yet
                    time.sleep(0.1)
            for pipe in ((near, far, bytes), (far, near, change)):
                threading.Thread(target=self._carry, args=pipe, daemon=True).start()

    def _carry(self, origin: socket.socket, target: socket.socket, change) -> None:
        try:
            while data := origin.recv(65536):
                if not self.cut.is_set():
                    target.sendall(change(data))
            if not self.cut.is_set():
                target.shutdown(socket.SHUT_WR)
        except OSError:
            target.close()

    def _with_way_to_jax(self, data: bytes) -> bytes:
        """The lead's answer to the roll call says where JAX listens: the way there is ours too."""
        if self._way_to_jax or b'"jax_port"' not in data:
            return data
        answer, rest = data.split(b"\n", 1)
        self._way_to_jax = self._open_way(json.loads(answer)["jax_port"])
        return json.dumps({"jax_port": self._way_to_jax}).encode() + b"\n" + rest
