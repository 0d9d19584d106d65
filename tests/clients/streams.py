"""Talks to stream-server.py as an application would: the first argument has the roots (PEM) that
it trusts, each further one, `NAME=HOST/PORT`, is a conversation. Says as JSON what came of each."""

import hashlib
import json
import os
import socket
import ssl
import sys
import threading
import time

SIZE = 24 << 20


def connect(host, port):
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def rest(connection):
    heard = b""
    while piece := connection.recv(1 << 20):
        heard += piece
    return heard


def digest(data):
    return hashlib.sha256(data).hexdigest()


def half_close(connection):
    """Says all, closes its side, and still hears the answer."""
    said = b"\x00\x01\xffneither TLS nor HTTP" + os.urandom(100_000)
    connection.sendall(said)
    connection.shutdown(socket.SHUT_WR)
    return rest(connection).decode().split() == [str(len(said)), digest(said)]


def nothing_to_say(connection):
    """Closes its side before it has said anything."""
    connection.shutdown(socket.SHUT_WR)
    return rest(connection).decode().split()[0]


def bulk(connection):
    """Both sides send at once; the server compares one half, we the other."""
    block = hashlib.sha512(b"noise").digest() * 1024
    expected = (block * (SIZE // len(block) + 1))[:SIZE]
    said = os.urandom(1 << 20) * (SIZE >> 20)

    def talk():
        connection.sendall(f"{SIZE}\n".encode() + said)
        connection.shutdown(socket.SHUT_WR)

    talker = threading.Thread(target=talk)
    talker.start()
    same = rest(connection) == expected
    talker.join()
    return {"same": same, "said": f"{SIZE} {digest(said)}"}


def listen_first(connection):
    """Waits for the server to speak."""
    begun = time.monotonic()
    greeting = connection.recv(64).decode()
    waited = time.monotonic() - begun
    connection.sendall(b"\x00ping")
    return {"greeting": greeting, "echo": connection.recv(64) == b"\x00ping", "waited": waited}


def think_first(connection):
    """Says nothing for a while, although the server waits for it."""
    time.sleep(0.3)
    connection.sendall(b"\x00late")
    return connection.recv(64) == b"\x00late"


def in_pieces(connection):
    """Begins like TLS or HTTP, and is neither; one byte at a time."""
    said = b"\x16\x03\x07GET is no TLS"
    for byte in said:
        connection.sendall(bytes([byte]))
        time.sleep(0.005)
    heard = b""
    while len(heard) < len(said):
        heard += connection.recv(64)
    return heard == said


def words(connection):
    """Begins with letters that could become HTTP, and waits for an answer."""
    connection.sendall(b"HELLO")
    return connection.recv(64) == b"HELLO"


def broken(connection):
    """The server breaks off: that must not look like an end."""
    connection.sendall(b"more")
    half = connection.recv(4)
    return half == b"half" and outcome(connection, b"more")


def raw(connection):
    """Says something that nobody knows; what comes back?"""
    return outcome(connection, b"\x00\x01who is there?")


def silent(connection):
    """Waits for a greeting."""
    return outcome(connection)


def outcome(connection, said=b""):
    """A reset may come before what is said, and then it is the sending that hears of it."""
    try:
        connection.sendall(said)
        heard = connection.recv(64)
        return f"heard {heard!r}" if heard else "ended"
    except (ConnectionResetError, BrokenPipeError):
        return "reset"
    except TimeoutError:
        return "silence"


def tls(alpn):
    def talk(connection, host):
        context = ssl.create_default_context(cafile=sys.argv[1])
        context.set_alpn_protocols(alpn)
        try:
            secure = context.wrap_socket(connection, server_hostname=host)
        except (ConnectionResetError, BrokenPipeError):
            return "reset"
        except ssl.SSLError as error:
            return f"alert {error.reason}"
        greeting = secure.recv(64).decode()
        secure.sendall(b"ping")
        agreed, echo = secure.selected_alpn_protocol(), secure.recv(64) == b"ping"
        # Hears the server out: whoever leaves before that breaks the connection.
        secure.shutdown(socket.SHUT_WR)
        rest(secure)
        return {"greeting": greeting, "alpn": agreed, "echo": echo}

    return talk


CONVERSATIONS = {
    "half_close": half_close,
    "nothing_to_say": nothing_to_say,
    "bulk": bulk,
    "listen_first": listen_first,
    "think_first": think_first,
    "in_pieces": in_pieces,
    "words": words,
    "broken": broken,
    "raw": raw,
    "silent": silent,
    "queue_tls": tls(["acme-queue/1"]),
}


def main():
    found = {}
    for argument in sys.argv[2:]:
        name, target = argument.split("=")
        host, port = target.rsplit("/", 1)
        try:
            connection = connect(host, port)
            talk = CONVERSATIONS[name]
            found[name] = talk(connection, host) if name.endswith("tls") else talk(connection)
            connection.close()
        except OSError as error:
            found[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(found))


main()
