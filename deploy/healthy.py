"""The containers' health check: exit status 0 when PORT of this machine answers GET PATH with 200.

Run every few seconds for ever, so it imports next to nothing.
"""

from __future__ import annotations

import socket
import sys

SECONDS = 3.0


def healthy(port: int, path: str) -> bool:
    """Whether it answers 200 in time."""
    try:
        with socket.create_connection(("127.0.0.1", port), SECONDS) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            first = connection.makefile("rb").readline()
    except OSError:
        return False
    return first.split()[1:2] == [b"200"]


if __name__ == "__main__":
    sys.exit(not healthy(int(sys.argv[1]), sys.argv[2]))
