"""The client: one HTTP connection for sessions, one websocket for each conversation.

Returns what the server sends as plain dictionaries; knows nothing of terminals.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import httpx2
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import ClientConnection, connect

LAST_EVENTS = ("turn.completed", "turn.cancelled")


class HopeRequestError(Exception):
    """The server refused; `code` is the contract's word for why.

    Args:
        message: what was wrong and how to mend it, in the server's words.
        code: for programs.
        retry_after_s: seconds after which trying again makes sense, where it does.
    """

    def __init__(self, message: str, code: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


class HopeClient:
    """A server, as `with HopeClient(url) as client:`.

    Args:
        url: where it listens.
        api_key: sent with everything, where the server asks for keys.
        timeout_s: of one HTTP request, and of opening a websocket.
    """

    def __init__(self, url: str = "http://127.0.0.1:8000", api_key: str | None = None, timeout_s: float = 30.0) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_s = timeout_s
        self._http = httpx2.Client(base_url=self._url, headers=self._headers, timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the HTTP connection."""
        self._http.close()

    def create_session(self, session_id: str | None = None, **fields: Any) -> dict[str, Any]:
        """Begin a session; `fields` may be `metadata` and `contribute`."""
        return self._call("POST", "/v1/sessions", {**({"id": session_id} if session_id else {}), **fields})

    def session(self, session_id: str) -> dict[str, Any]:
        """One session."""
        return self._call("GET", f"/v1/sessions/{session_id}")

    def memory(self, session_id: str) -> dict[str, Any]:
        """What the session's memory looks like from outside."""
        return self._call("GET", f"/v1/sessions/{session_id}/memory")

    def delete_session(self, session_id: str) -> None:
        """Erase a session and everything that belongs to it."""
        self._call("DELETE", f"/v1/sessions/{session_id}")

    def versions(self, session_id: str) -> list[dict[str, Any]]:
        """The versions of the session's memory that can be gone back to, newest first."""
        found: list[dict[str, Any]] = self._call("GET", f"/v1/sessions/{session_id}/versions")["data"]
        return found

    def rollback(self, session_id: str, version: int) -> dict[str, Any]:
        """Go back to a version (0: nothing read yet); what came after it is undone. Returns the session."""
        return self._call("POST", f"/v1/sessions/{session_id}/rollback", {"version": version})

    def fork(self, session_id: str, *, version: int | None = None, new_id: str | None = None) -> dict[str, Any]:
        """Begin a second session with the memory and transcript of this one, by default as they are now."""
        return self._call("POST", f"/v1/sessions/{session_id}/fork", {"version": version, "id": new_id})

    def export_session(self, session_id: str) -> bytes:
        """The whole session as a safetensors file."""
        response = self._request("GET", f"/v1/sessions/{session_id}/export")
        if not response.is_success:
            self._answer(response)
        return bytes(response.content)

    def import_session(self, file: bytes, session_id: str | None = None) -> dict[str, Any]:
        """Begin a session from what `export_session` returned."""
        params = {"id": session_id} if session_id else {}
        return self._answer(self._request("POST", "/v1/sessions/import", params=params, content=file))

    def consolidate(self, *, without: str | None = None) -> dict[str, Any]:
        """Have contributing sessions folded into a new generation (operator keys); it runs when this returns.

        Args:
            without: a session, deleted or not: go back to before the generations that learned from it.
        """
        return self._call("POST", "/v1/consolidations", {"without": without})

    def consolidation(self, consolidation_id: str) -> dict[str, Any]:
        """How a consolidation goes (operator keys)."""
        return self._call("GET", f"/v1/consolidations/{consolidation_id}")

    def generations(self) -> list[dict[str, Any]]:
        """The generations that are kept, newest first; 0 is the checkpoint alone (operator keys)."""
        found: list[dict[str, Any]] = self._call("GET", "/v1/generations")["data"]
        return found

    def activate_generation(self, generation: int) -> dict[str, Any]:
        """Make a generation the active one, for all sessions from their next turn on (operator keys)."""
        return self._call("POST", f"/v1/generations/{generation}/activate")

    def quarantine(self) -> list[dict[str, Any]]:
        """The sessions that spoiled candidates for a generation, latest first (operator keys)."""
        found: list[dict[str, Any]] = self._call("GET", "/v1/quarantine")["data"]
        return found

    def let_out(self, session_id: str) -> None:
        """Have a session in quarantine tried again (operator keys)."""
        self._call("DELETE", f"/v1/quarantine/{session_id}")

    @contextmanager
    def open(self, session_id: str) -> Iterator[Conversation]:
        """A conversation over a websocket, closed at the end of the block.

        Raises:
            HopeRequestError: the session is unknown, the key is wrong, or nobody answers.
        """
        url = f"ws{self._url.removeprefix('http')}/v1/sessions/{session_id}/stream"
        try:
            socket = connect(
                url,
                additional_headers=self._headers,
                subprotocols=["hope.v1"],  # type: ignore[list-item]  # a NewType of str
                compression=None,
                open_timeout=self._timeout_s,
                max_queue=None,
            )
        except (OSError, TimeoutError, InvalidHandshake) as error:
            raise HopeRequestError(f"No server answers at {self._url}: {error}", "unreachable") from error
        with socket:
            yield Conversation(socket)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._answer(self._request(method, path, json=body))

    def _request(self, method: str, path: str, **sent: Any) -> httpx2.Response:
        try:
            return self._http.request(method, path, **sent)
        except httpx2.TransportError as error:
            raise HopeRequestError(f"No server answers at {self._url}: {error}", "unreachable") from error

    def _answer(self, response: httpx2.Response) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = response.json()
            if response.is_success:
                return answer
            error_object = answer["error"]
        except (ValueError, KeyError, TypeError):
            message = f"What answers at {self._url} is no Hope server (status {response.status_code})."
            raise HopeRequestError(message, "unreachable") from None
        raise _refusal(error_object, response.headers.get("retry-after"))


class Conversation:
    """One open websocket: turns one after the other. `session` is the session as it was when it opened."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._running = False
        self.session: dict[str, Any] = self._receive()["session"]

    def turn(self, message: str, *, idempotency_key: str | None = None, **fields: Any) -> Iterator[dict[str, Any]]:
        """Say something and iterate over the events as they come, `turn.completed` or `turn.cancelled` last.

        Args:
            message: what to say.
            idempotency_key: the same key with the same turn returns the stored turn and learns nothing again.
            fields: `learn`, `max_tokens`, `temperature`, … as the contract names them.
        """
        frame = {"type": "turn.create", "turn": {"message": message, **fields}}
        if idempotency_key is not None:
            frame["idempotency_key"] = idempotency_key
        self._send(frame)
        self._running = True
        return self.rest()

    def rest(self) -> Iterator[dict[str, Any]]:
        """The events of the running turn that have not been yielded yet; none when no turn runs."""
        while self._running:
            event = self._receive()
            self._running = event["type"] not in LAST_EVENTS
            yield event

    def cancel(self) -> None:
        """Stop the running turn; `turn` then ends with `turn.cancelled` or, too late, `turn.completed`."""
        self._send({"type": "turn.cancel"})

    def _send(self, frame: dict[str, Any]) -> None:
        try:
            self._socket.send(json.dumps(frame, ensure_ascii=False))
        except ConnectionClosed as closed:
            raise _closed(closed) from closed

    def _receive(self) -> dict[str, Any]:
        try:
            event: dict[str, Any] = json.loads(self._socket.recv())
        except ConnectionClosed as closed:
            raise _closed(closed) from closed
        if event["type"] == "error":
            self._running = False
            raise _refusal(event["error"], None)
        return event


def _refusal(error: dict[str, Any], retry_after: str | None) -> HopeRequestError:
    wait_s = float(retry_after) if retry_after and retry_after.isdecimal() else None
    return HopeRequestError(error["message"], error["code"], wait_s)


def _closed(closed: ConnectionClosed) -> HopeRequestError:
    received = closed.rcvd
    if received is not None and received.code == 1012:
        return HopeRequestError("The server is restarting; connect again in a moment.", "draining")
    reason = f" ({received.code} {received.reason})" if received is not None else ""
    return HopeRequestError(f"The server closed the connection{reason}.", "closed")
