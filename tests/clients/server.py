"""What the real clients call: gRPC (grpcio) and WebSockets (websockets), each over TLS, and what both have seen.

    server.py DIRECTORY      key.pem and certificate.pem are there

    8451  gRPC    8452  WebSocket    9092  what was seen (plain, loopback)
"""

import http.server
import json
import pathlib
import socket
import ssl
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import websockets.sync.server

directory = pathlib.Path(sys.argv[1])
key, certificate = (directory / name for name in ("key.pem", "certificate.pem"))
seen = []


def note(call, headers, **more):
    """Takes down a call and whether a credential came with it: a JWT, as our issuer makes them."""
    authorised = dict(headers).get("authorization", "").startswith("Bearer ey")
    seen.append({"call": call, "authorised": authorised, **more})


def begun(context, call):
    headers = {name: value for name, value in context.invocation_metadata() if isinstance(value, str)}
    note(call, headers, timed=context.time_remaining() is not None)


def unary(request, context):
    begun(context, "Unary")
    return request


def server_streaming(requests, context):
    begun(context, "ServerStreaming")
    for number in range(int(next(requests))):
        yield str(number).encode()


def client_streaming(requests, context):
    begun(context, "ClientStreaming")
    yield b"".join(requests)


def bidirectional(requests, context):
    begun(context, "Bidirectional")
    yield from requests


def slow(request, context):
    begun(context, "Slow")
    cancelled = threading.Event()
    context.add_callback(cancelled.set)
    cancelled.wait(10)
    seen.append({"call": "Slow", "cancelled": cancelled.is_set() and not context.is_active()})
    return request


def fails(request, context):
    begun(context, "Fails")
    context.set_trailing_metadata((("why", "told in a trailer"),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not tödäy, 100 %")


def serve_grpc():
    # Messages are bytes: what they mean is not the subject.
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "ServerStreaming": grpc.stream_stream_rpc_method_handler(server_streaming),
        "ClientStreaming": grpc.stream_stream_rpc_method_handler(client_streaming),
        "Bidirectional": grpc.stream_stream_rpc_method_handler(bidirectional),
        "Slow": grpc.unary_unary_rpc_method_handler(slow),
        "Fails": grpc.unary_unary_rpc_method_handler(fails),
    }
    server = grpc.server(ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("demo.Echo", handlers),))
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    assert server.add_secure_port("[::]:8451", credentials)
    server.start()
    return server


def talk(peer):
    headers = {name.lower(): value for name, value in peer.request.headers.raw_items()}
    note(peer.request.path, headers)
    for message in peer:
        if message == "close":
            return peer.close(4001, "as you wish")
        peer.send(message)


def serve_websocket():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    both_families = socket.create_server(("::", 8452), family=socket.AF_INET6, dualstack_ipv6=True)
    server = websockets.sync.server.serve(talk, sock=both_families, ssl=context)
    threading.Thread(target=server.serve_forever, daemon=True).start()


class Seen(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


grpc_server = serve_grpc()
serve_websocket()
http.server.ThreadingHTTPServer(("127.0.0.1", 9092), Seen).serve_forever()
