"""What a program of grpcio does and reads, as JSON lines.

    grpc_client.py HOST:PORT           each kind of call
    grpc_client.py HOST:PORT unary     one call, whose error its user reads
    grpc_client.py HOST:PORT hold      a stream that stays open until somebody ends it
"""

import json
import os
import pathlib
import queue
import sys

import grpc

host = sys.argv[1]
# The one client that reads none of the trust variables: its own is GRPC_DEFAULT_SSL_ROOTS_FILE_PATH.
roots = pathlib.Path(os.environ["SSL_CERT_FILE"]).read_bytes()
channel = grpc.secure_channel(host, grpc.ssl_channel_credentials(roots))


def method(kind, name):
    return getattr(channel, kind)(f"/demo.Echo/{name}")


def told(call, got=(), error=None, trailer=()):
    code = error.code().value[0] if error else 0
    message = error.details() if error else ""
    got = [message.decode() for message in got]
    line = {"call": call, "code": code, "message": message, "got": got, "why": dict(trailer).get("why", "")}
    print(json.dumps(line))


def calls():
    told("unary", [method("unary_unary", "Unary")(b"hello", timeout=15)])
    told("server streaming", list(method("stream_stream", "ServerStreaming")(iter([b"3"]), timeout=15)))
    told("client streaming", list(method("stream_stream", "ClientStreaming")(iter([b"a", b"b", b"c"]), timeout=15)))

    # Each message is sent only after the answer to the one before.
    sending = queue.Queue()
    answers = method("stream_stream", "Bidirectional")(iter(sending.get, None), timeout=15)
    got = []
    for message in (b"ping", b"pong"):
        sending.put(message)
        got.append(next(answers))
    sending.put(None)
    told("bidirectional", got + list(answers))

    try:
        method("unary_unary", "Slow")(b"", timeout=3)
    except grpc.RpcError as error:
        told("deadline", error=error)
    try:
        method("unary_unary", "Fails")(b"", timeout=15)
    except grpc.RpcError as error:
        told("status", error=error, trailer=error.trailing_metadata())


def hold():
    sending = queue.Queue()
    answers = method("stream_stream", "Bidirectional")(iter(sending.get, None), timeout=30)
    sending.put(b"open")
    print(next(answers).decode(), flush=True)
    next(answers)


if sys.argv[2:] == ["unary"]:
    method("unary_unary", "Unary")(b"hello", timeout=15)
elif sys.argv[2:] == ["hold"]:
    hold()
else:
    calls()
