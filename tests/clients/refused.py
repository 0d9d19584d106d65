"""One call each, refused: the program ends with the exception that its user would read.

    refused.py requests|httpx|aiohttp URL
    refused.py boto3 SERVICE OPERATION URL [JSON]
"""

import asyncio
import json
import sys


def with_boto3(service, operation, url, parameters="{}"):
    import boto3

    client = boto3.client(service, endpoint_url=url)
    getattr(client, operation)(**json.loads(parameters))


def with_requests(url):
    import requests

    requests.get(url, timeout=15).raise_for_status()


def with_httpx(url):
    import httpx

    httpx.get(url, timeout=15).raise_for_status()


def with_aiohttp(url):
    import ssl

    import aiohttp

    async def call():
        connector = aiohttp.TCPConnector(ssl=ssl.create_default_context())
        async with aiohttp.ClientSession(connector=connector) as session:
            (await session.get(url)).raise_for_status()

    asyncio.run(call())


globals()["with_" + sys.argv[1]](*sys.argv[2:])
