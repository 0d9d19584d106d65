"""Says bytes to HOST PORT, each of the further arguments over a connection of its own, all at once, and tells what comes
back on each, as JSON: until the other side ends, or has said something and then nothing for a second and a half. The
bytes have their escapes (\\r\\n)."""

import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

host, port = sys.argv[1:3]


def talk(said):
    heard = b""
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        try:
            connection.sendall(said.encode().decode("unicode_escape").encode("latin-1"))
            while piece := connection.recv(1 << 16):
                heard += piece
                connection.settimeout(1.5)
        except (TimeoutError, ConnectionResetError, BrokenPipeError):
            pass
    return heard.decode("latin-1")


with ThreadPoolExecutor(8) as pool:
    print(json.dumps(list(pool.map(talk, sys.argv[3:]))))
