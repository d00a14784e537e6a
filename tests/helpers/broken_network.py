"""A network between a run's lead and another process that can be cut, as a cable can.

No connection is closed: data is dropped, and neither side notices.
"""

import socket
import threading
import time


class Network:
    """A proxy between the lead's coordinator port and another process.

    Args:
        lead_port: where the lead listens, on this machine; the other process uses `port` instead.
    """

    def __init__(self, lead_port: int) -> None:
        self.cut, self.lead_port = threading.Event(), lead_port
        server = socket.create_server(("127.0.0.1", 0))
        self.port = server.getsockname()[1]
        threading.Thread(target=self._serve, args=(server,), daemon=True).start()

    def _serve(self, server: socket.socket) -> None:
        while True:
            near, _ = server.accept()
            far = None
            while far is None:
                try:
                    far = socket.create_connection(("127.0.0.1", self.lead_port))
                except ConnectionRefusedError:  # not listening yet
                    time.sleep(0.1)
            for ends in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, origin: socket.socket, target: socket.socket) -> None:
        try:
            while data := origin.recv(65536):
                if not self.cut.is_set():
                    target.sendall(data)
            if not self.cut.is_set():
                target.shutdown(socket.SHUT_WR)
        except OSError:
            target.close()
