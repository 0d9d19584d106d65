"""Sends a datagram to each ADDRESS/PORT and says what came of it: answered, refused, or silent (10 s)."""

import json
import socket
import sys
import time


def send(target):
    address, port = target.rsplit("/", 1)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as datagram:
        datagram.settimeout(10)
        try:
            datagram.connect((address, int(port)))
            datagram.send(b"hello")
            return "answered" if datagram.recv(16) == b"hello" else "changed"
        except (ConnectionRefusedError, PermissionError):
            return "refused"
        except TimeoutError:
            return "silent"


found = {}
for target in sys.argv[1:]:
    begun = time.monotonic()
    found[target] = send(target)
    found["slowest"] = max(found.get("slowest", 0), time.monotonic() - begun)
print(json.dumps(found))
