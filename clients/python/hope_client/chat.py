"""`hope chat`: a conversation in the terminal, streamed, with what the memory did after each turn.

In a terminal it edits lines and remembers them; in a pipe it reads one message a line and prints plain text.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from hope_client.blocking import Conversation, HopeClient
from hope_client.contract import Memory, Session, Turn, TurnEvent, TurnOptions
from hope_client.errors import Draining, HopeRequestError, NotFound, Unreachable

DESCRIPTION = """\
Talk to a Hope server. What you tell it is learned by the session's own weights and kept when you leave: come back
with the same --session, and ask. After each turn it shows how surprising your message was (in nats: less is more
expected) and the version of the memory."""

COMMANDS = """\
in the conversation:
  /memory   what each level of the memory holds
  /new      begin another session
  /quit     leave; nothing is lost
  Ctrl-C    stop the reply; that turn is then not learned

examples:
  hope chat
  hope chat --session holiday
  printf 'My dog is called Rufus.\\nWhat is my dog called?\\n' | hope chat"""

HISTORY_FILE = Path.home() / ".hope_history"
HISTORY_LINES = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the conversation; returns the exit status."""
    given = _parser().parse_args(arguments)
    api_key = os.environ.get("HOPE_API_KEY")
    chat = Chat(sys.stdin.isatty(), sys.stdout.isatty() and "NO_COLOR" not in os.environ, _options(given))
    try:
        with HopeClient(given.url, api_key) as client:
            chat.run(client, given.session)
    except HopeRequestError as error:
        print(f"hope chat: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, BrokenPipeError):
        return 130
    return 0


class Chat:
    """The conversation as a person sees it.

    Args:
        interactive: someone types; else messages come from a pipe.
        colour: notes may be dimmed.
        options: fields of every turn.
    """

    def __init__(self, interactive: bool, colour: bool, options: TurnOptions) -> None:
        self._interactive = interactive
        self._colour = colour
        self._options = options

    def run(self, client: HopeClient, session_id: str | None) -> None:
        """Talk until /quit or the end of the input; /new goes on in another session."""
        lines = _typed_lines() if self._interactive else _piped_lines()
        session: Session | None = _find_or_create(client, session_id)
        while session is not None:
            with client.stream(session) as conversation:
                self._note(f"session {session['id']} · version {session['version']} · /memory /new /quit")
                session = self._talk(client, conversation, lines)

    def _talk(self, client: HopeClient, conversation: Conversation, lines: Iterator[str]) -> Session | None:
        """One session's part of the conversation; the session to go on with, or None at the end."""
        for line in lines:
            match line.strip():
                case "":
                    continue
                case "/quit":
                    return None
                case "/new":
                    return client.create_session()
                case "/memory":
                    self._show_memory(client.memory(conversation.session))
                case command if command.startswith("/") and " " not in command:
                    self._note(f"there is no {command}; there are /memory, /new and /quit")
                case message:
                    self._turn(conversation, message)
        return None

    def _turn(self, conversation: Conversation, message: str) -> None:
        events = conversation.turn(message, **self._options)
        while True:
            try:
                for event in events:
                    self._show(event)
                return
            except KeyboardInterrupt:
                # Resumed after the cancel: the server says how the turn ended. A second Ctrl-C leaves.
                conversation.cancel()
                events = conversation.rest()
            except HopeRequestError as error:
                if isinstance(error, Unreachable | Draining):
                    raise
                self._note(str(error))
                return

    def _show(self, event: TurnEvent) -> None:
        if event["type"] == "turn.token":
            print(event["text"], end="", flush=True)
        elif event["type"] == "turn.restarted":
            print()
            self._note(f"{event['reason']} The reply begins again:")
        elif event["type"] == "turn.completed":
            print()
            self._note(describe(event["turn"]))
        elif event["type"] == "turn.cancelled":
            print()
            self._note("stopped; nothing was learned")

    def _show_memory(self, memory: Memory) -> None:
        self._note(f"version {memory['version']}, generation {memory['generation']}")
        self._note(f"{'level':<12}{'scope':<9}{'updates':>8}{'KiB':>9}{'norm':>9}{'drift':>8}  clock")
        for level in memory["levels"]:
            size_kib = level["bytes"] / 1024
            self._note(
                f"{level['name']:<12}{level['scope']:<9}{level['updates']:>8}{size_kib:>9.1f}"
                f"{level['norm']:>9.2f}{level['drift']:>8.3f}  {level['clock']}"
            )

    def _note(self, text: str) -> None:
        print(f"\033[2m{text}\033[0m" if self._colour else text, flush=True)


def describe(turn: Turn) -> str:
    """One line on what a turn did to memory."""
    memory = turn["memory"]
    learned = f"version {memory['version']}" if memory["learned"] else f"version {memory['version']}, not learned"
    return (
        f"surprise {memory['surprise']:.2f} · {learned} · {turn['usage']['total_tokens']} tokens · "
        f"{turn['timing']['total_ms'] / 1000:.1f} s"
    )


def _find_or_create(client: HopeClient, session_id: str | None) -> Session:
    if session_id is None:
        return client.create_session()
    try:
        return client.session(session_id)
    except NotFound:
        return client.create_session(session_id)


def _typed_lines() -> Iterator[str]:
    import readline

    with suppress(OSError):  # no history yet, or none that may be read
        readline.read_history_file(HISTORY_FILE)
    readline.set_history_length(HISTORY_LINES)
    try:
        while True:
            try:
                yield input("> ")
            except EOFError:
                print()
                return
    finally:
        with suppress(OSError):  # a home that cannot be written only costs the history
            readline.write_history_file(HISTORY_FILE)


def _piped_lines() -> Iterator[str]:
    for line in sys.stdin:
        print(f"> {line.rstrip()}", flush=True)
        yield line


def _options(given: argparse.Namespace) -> TurnOptions:
    options: TurnOptions = {"learn": False} if given.no_learn else {}
    if given.max_tokens is not None:
        options["max_tokens"] = given.max_tokens
    if given.temperature is not None:
        options["temperature"] = given.temperature
    if given.seed is not None:
        options["seed"] = given.seed
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "hope chat",
        description=DESCRIPTION,
        epilog=COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    url = os.environ.get("HOPE_URL", "http://127.0.0.1:8000")
    parser.add_argument("--url", default=url, help=f"where the server listens [HOPE_URL, default {url}]")
    parser.add_argument("--session", metavar="ID", help="session to go on with, or to begin; else a new one")
    parser.add_argument("--no-learn", action="store_true", help="ask without leaving a trace")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest reply")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 always says the likeliest")
    parser.add_argument("--seed", type=int, metavar="N", help="the same reply again from the same memory")
    parser.add_argument_group("key", "a server with API keys: set HOPE_API_KEY")
    return parser


if __name__ == "__main__":
    sys.exit(main())
