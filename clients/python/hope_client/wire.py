"""How requests travel: over one pool of HTTP connections, made again where that is safe. Knows no route.

Every failure leaves here as one of `hope_client.errors`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx2

from hope_client.errors import ConnectionLost, HopeRequestError, Unreachable, from_answer
from hope_client.retry import Patience

# Of a proxy that got no answer from the server behind it.
BAD_GATEWAYS = (502, 503, 504)
# Said by httpx2 before any of the request was sent.
_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
_NO_ADDRESS = (httpx2.UnsupportedProtocol, httpx2.InvalidURL)


class Wire:
    """A server's address, and the way there.

    Args:
        url: where it listens.
        api_key: sent with everything, where the server asks for keys.
        timeout_s: of one HTTP answer, and of opening a websocket.
        max_attempts: how often one request is made in all; 1 never repeats.
    """

    def __init__(self, url: str, api_key: str | None, timeout_s: float, max_attempts: int) -> None:
        self.url = url.rstrip("/")
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.timeout_s = timeout_s
        # Patience is for a server that went away. One that never answered may not be there at all.
        self.met = False
        self._max_attempts = max_attempts
        self._http = httpx2.AsyncClient(base_url=self.url, headers=self.headers, timeout=timeout_s)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._http.aclose()

    def patience(self, limit_s: float, *, once: bool) -> Patience:
        """For one request of this client."""
        return Patience(self._max_attempts, limit_s, once)

    async def call(self, method: str, path: str, body: Any = None, **how: Any) -> Any:
        """The JSON that answers; `how` as in `fetch`."""
        response = await self.fetch(method, path, json=body, **how)
        try:
            return response.json()
        except ValueError:
            raise self._stranger(response) from None

    async def fetch(
        self, method: str, path: str, *, once: bool = False, limit_s: float | None = None, **sent: Any
    ) -> httpx2.Response:
        """The answer, which is no error.

        Args:
            method: of HTTP.
            path: of the route, quoted.
            once: asking twice does no more than asking once, so it is repeated when the answer is lost.
            limit_s: how long the answer may take; by default the client's timeout.
            sent: parameters, headers and body, as httpx2 names them.

        Raises:
            HopeRequestError: the server refused, or nobody answered.
        """
        limit_s = limit_s or self.timeout_s
        patience = self.patience(limit_s, once=once)
        while True:
            try:
                with self.reaching():
                    response = await self._http.request(method, path, timeout=self._timeout(limit_s), **sent)
                self._check(response)
                return response
            except HopeRequestError as error:
                await patience.wait(error)

    async def events(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str], limit_s: float
    ) -> AsyncGenerator[dict[str, Any]]:
        """Server-Sent Events as they come, until the end mark; hangs up when closed earlier. One attempt."""
        timeout = self._timeout(limit_s)
        with self.reaching():
            async with self._http.stream("POST", path, json=body, headers=dict(headers), timeout=timeout) as response:
                if not response.is_success:
                    await response.aread()
                self._check(response)
                async for event in httpx2.EventSource(response, max_event_size=None):
                    if event.data == "[DONE]":
                        return
                    yield json.loads(event.data)
        raise self.lost("it ended in the middle of a turn")

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Failures to reach the server inside the block become ours."""
        try:
            yield
        except _NO_ADDRESS as error:
            raise Unreachable(f"{self.url} is no address of a server: {error}", repeatable=False) from error
        except _NEVER_SENT as error:
            raise self.nobody(error) from error
        except httpx2.TransportError as error:
            raise self.lost(str(error) or type(error).__name__) from error

    def nobody(self, error: Exception) -> Unreachable:
        """Nobody took the request."""
        return Unreachable(f"No server answers at {self.url}: {error}", repeatable=self.met)

    def lost(self, how: str) -> ConnectionLost:
        """The request was made and the answer got lost."""
        return ConnectionLost(f"The connection to {self.url} was lost: {how}.")

    def _check(self, response: httpx2.Response) -> None:
        if response.is_success:
            self.met = True
            return
        try:
            error_object = response.json()["error"]
            refusal = from_answer(response.status_code, response.headers, error_object)
        except (ValueError, KeyError, TypeError):
            raise self._stranger(response) from None
        self.met = True
        raise refusal

    def _stranger(self, response: httpx2.Response) -> HopeRequestError:
        if response.status_code in BAD_GATEWAYS:
            return self.lost(f"a proxy got no answer (status {response.status_code})")
        message = f"What answers at {self.url} is no Hope server (status {response.status_code})."
        return Unreachable(message, status=response.status_code, repeatable=False)

    def _timeout(self, limit_s: float) -> httpx2.Timeout:
        return httpx2.Timeout(self.timeout_s, read=limit_s)


def path_of(*parts: str | int) -> str:
    """A route under /v1; whatever an id holds, it stays one part of the path."""
    return "/".join(("/v1", *(quote(str(part), safe="") for part in parts)))
