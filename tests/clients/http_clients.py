"""What programs of Python's HTTP clients do and read, as JSON lines.

    http_clients.py requests|httpx|httpx2|aiohttp HOST:PORT
"""

import asyncio
import json
import os
import sys

which, host = sys.argv[1:]
bundle = os.environ["SSL_CERT_FILE"]


def url(path):
    return f"https://{host}{path}?{which}"


def told(call, version, status, pieces):
    text = b"".join(pieces).decode()
    line = {"call": call, "version": version, "status": status, "first": pieces[0].decode(), "text": text}
    print(json.dumps(line))


def pieces():
    yield b"one "
    yield b"two "
    yield b"three"


def with_requests():
    import requests

    def call(name, method, path, data=None):
        with session.request(method, url(path), data=data, stream=True, timeout=15) as answer:
            version = {10: "HTTP/1.0", 11: "HTTP/1.1"}[answer.raw.version]
            told(name, version, answer.status_code, list(answer.iter_content(None)))

    with requests.Session() as session:
        call("get", "GET", "/get")
        call("post", "POST", "/echo", b"posted")
        call("upload", "POST", "/echo", pieces())
        call("events", "GET", "/events")


def with_httpx(http2):
    import httpx

    def call(name, method, path, content=None):
        with client.stream(method, url(path), content=content) as answer:
            told(name, answer.http_version, answer.status_code, list(answer.iter_raw()))

    with httpx.Client(http1=not http2, http2=http2, timeout=15) as client:
        call("get", "GET", "/get")
        call("post", "POST", "/echo", b"posted")
        call("upload", "POST", "/echo", pieces())
        call("events", "GET", "/events")


async def with_aiohttp():
    import ssl

    import aiohttp

    async def some():
        for piece in pieces():
            yield piece

    async def call(name, method, path, data=None):
        async with session.request(method, url(path), data=data) as answer:
            version = f"HTTP/{answer.version.major}.{answer.version.minor}"
            told(name, version, answer.status, [piece async for piece in answer.content.iter_any()])

    context = ssl.create_default_context()
    connector = aiohttp.TCPConnector(ssl=context)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(15)) as session:
        await call("get", "GET", "/get")
        await call("post", "POST", "/echo", b"posted")
        await call("upload", "POST", "/echo", some())
        await call("events", "GET", "/events")


match which:
    case "requests":
        with_requests()
    case "httpx" | "httpx2":
        with_httpx(which == "httpx2")
    case "aiohttp":
        asyncio.run(with_aiohttp())
