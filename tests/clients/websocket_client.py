"""What a program of websockets does and reads: `websocket_client.py URL`."""

import json
import os
import ssl
import sys

from websockets.sync.client import connect

context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
with connect(sys.argv[1], ssl=context) as socket:
    got = []
    for message in ("text", b"\x00\x01bytes", "x" * 100_000):
        socket.send(message)
        got.append(socket.recv(timeout=15) == message)
    latency = socket.ping().wait(15)
    socket.send("close")
    try:
        socket.recv(timeout=15)
    except Exception:
        pass
    print(json.dumps({"call": "websocket", "echoed": got, "pong": latency, "close": socket.close_code, "reason": socket.close_reason}))
