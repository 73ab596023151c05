"""Small JSON documents of other services, over HTTP: bounded in time and size, without redirects."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from backplane.errors import ConfigurationError

if TYPE_CHECKING:
    import httpx

_MOST_BYTES = 1024 * 1024
_CONNECTIONS = 32


class FetchError(Exception):
    """There is no answer that can be used; the text says why, without the address's secrets."""


class Answer:
    """What a service said.

    Attributes:
        status: HTTP status.
        document: the JSON content; None if there is none.
    """

    __slots__ = ("document", "status")

    def __init__(self, status: int, document: Any) -> None:
        self.status = status
        self.document = document


class Fetcher:
    """Asks one address again and again.

    Args:
        url: http or https.
        setting: where the address comes from, for errors.
        timeout_s: for the whole of one answer.

    Raises:
        ConfigurationError: it is no such address.
    """

    def __init__(self, url: str, setting: str, timeout_s: float) -> None:
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ConfigurationError(f"{setting} must be an address that begins with https:// or http://")
        self.scheme, self.host = parts.scheme, parts.hostname or ""
        self._url = url
        self._timeout_s = timeout_s
        self._client: httpx.AsyncClient | None = None

    async def ask(self, body: Any = None) -> Answer:
        """GET the document, or POST ``body`` as JSON.

        Raises:
            FetchError: no answer, not in time, too large, or a redirect.
        """
        import httpx

        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._ask(None if body is None else msgspec.json.encode(body))
        except TimeoutError:
            raise FetchError(f"no answer within {self._timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise FetchError(f"{type(error).__name__}: {error}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise FetchError("the answer is not JSON") from None

    async def _ask(self, body: bytes | None) -> Answer:
        client = self._ready()
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if body else {})
        method = "GET" if body is None else "POST"
        async with client.stream(method, self._url, content=body, headers=headers) as response:
            content = bytearray()
            async for piece in response.aiter_bytes():
                content += piece
                if len(content) > _MOST_BYTES:
                    raise FetchError(f"the answer is over {_MOST_BYTES} bytes")
        if response.is_redirect:
            raise FetchError(f"redirected ({response.status_code}); name the last address")
        wanted = response.is_success and content.strip()
        return Answer(response.status_code, msgspec.json.decode(content) if wanted else None)

    def _ready(self) -> httpx.AsyncClient:
        # Only who uses this pays for the import (60 ms, some MiB).
        import httpx

        if self._client is None:
            limits = httpx.Limits(max_connections=_CONNECTIONS)
            self._client = httpx.AsyncClient(timeout=self._timeout_s, limits=limits, follow_redirects=False)
        return self._client

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()
