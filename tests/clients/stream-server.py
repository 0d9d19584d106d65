"""A server that is not HTTP, with one manner for each port. It says what came: `PORT accepted`, `PORT BYTES SHA256`.

Arguments: certificate and key (PEM), for the port that speaks TLS.
"""

import hashlib
import socket
import ssl
import struct
import sys
import threading

LOCK = threading.Lock()


def say(text):
    with LOCK:
        print(text, flush=True)


def rest(connection):
    """Everything until the other side has nothing more to say."""
    digest, size = hashlib.sha256(), 0
    while piece := connection.recv(1 << 16):
        digest.update(piece)
        size += len(piece)
    return size, digest.hexdigest()


def late(connection):
    """Answers only when all has been said: what it heard."""
    size, digest = rest(connection)
    connection.sendall(f"{size} {digest}\n".encode())
    return size, digest


def bulk(connection):
    """Sends as many bytes as the first line asks for, while it listens to the rest."""
    asked = b""
    while not asked.endswith(b"\n"):
        asked += connection.recv(1)
    sender = threading.Thread(target=connection.sendall, args=(noise(int(asked)),))
    sender.start()
    heard = rest(connection)
    sender.join()
    return heard


def greeter(connection):
    """Speaks first, then echoes."""
    connection.sendall(b"220 hello\r\n")
    while piece := connection.recv(1 << 16):
        connection.sendall(piece)


def echo(connection):
    while piece := connection.recv(1 << 16):
        connection.sendall(piece)


def reset(connection):
    """Says half of it, and breaks off."""
    connection.recv(4)
    connection.sendall(b"half")
    connection.recv(4)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def noise(size):
    block = hashlib.sha512(b"noise").digest() * 1024
    return (block * (size // len(block) + 1))[:size]


def serve(port, manner, context=None):
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)

    def one(connection):
        say(f"{port} accepted")
        try:
            if context:
                connection = context.wrap_socket(connection, server_side=True)
            with connection:
                heard = manner(connection)
            if heard:
                say(f"{port} {heard[0]} {heard[1]}")
        except OSError as error:
            say(f"{port} broke: {error}")

    while True:
        connection, _ = listener.accept()
        threading.Thread(target=one, args=(connection,), daemon=True).start()


def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1], sys.argv[2])
    context.set_alpn_protocols(["acme-queue/1"])
    manners = [(7001, late), (7002, bulk), (7003, greeter), (7004, echo), (7005, reset)]
    threads = [threading.Thread(target=serve, args=manner, daemon=True) for manner in manners]
    threads.append(threading.Thread(target=serve, args=(7006, greeter, context), daemon=True))
    for thread in threads:
        thread.start()
    say("ready")
    sys.stdin.read()


if __name__ == "__main__":
    main()
