"""`hope chat` as people run it: in a pipe, and in a terminal with a Ctrl-C in mid-reply."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from hope_client import HopeClient

from tests.clients.python.cutting import cutting

COMMAND = [sys.executable, "-m", "hope_client.chat"]
SOURCE = Path(__file__).parents[3] / "clients" / "python"


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "HOME": str(home), "PYTHONPATH": str(SOURCE)}


def chat(url: str, home: Path, text: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "--url", url, "--temperature", "0", "--max-tokens", "4", *flags]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, env=environment(home))


def test_piped_messages_are_turns_of_one_session(url: str, tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    done = chat(url, tmp_path, "My dog is called Rufus.\n\nWhat is my dog called?\n", "--session", name)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"surprise \d+\.\d\d · version (\d+) · \d+ tokens", done.stdout) == ["1", "2"]
    again = chat(url, tmp_path, "hello\n/quit\nnever said\n", "--session", name)
    assert "version 3" in again.stdout
    with HopeClient(url) as client:
        assert client.session(name)["num_turns"] == 3


def test_commands_show_memory_and_begin_anew(url: str, tmp_path: Path) -> None:
    done = chat(url, tmp_path, "hello\n/memory\n/new\nhello\n/what\n")
    assert "titans" in done.stdout
    assert "cms.fast" in done.stdout
    assert len(set(re.findall(r"session (\S+) · version 0", done.stdout))) == 2
    assert re.findall(r"surprise \S+ · version (\d)", done.stdout) == ["1", "1"]
    assert "there is no /what" in done.stdout


def test_no_learn_leaves_no_trace(url: str, tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    assert "not learned" in chat(url, tmp_path, "hello\n", "--session", name, "--no-learn").stdout
    with HopeClient(url) as client:
        assert client.session(name)["version"] == 0


def test_refused_turn_is_shown_and_the_chat_goes_on(url: str, tmp_path: Path) -> None:
    done = chat(url, tmp_path, "hello\nhello\n", "--temperature", "9")
    assert done.stdout.count("'turn.temperature': input should be less than or equal to 2.") == 2
    assert done.returncode == 0


async def test_a_lost_connection_is_told_and_the_turn_is_not_lost(url: str, tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    async with cutting(url) as proxy:
        proxy.cut_at = [b"turn.token"]
        done = await asyncio.to_thread(chat, proxy.url, tmp_path, "hello\nhello\n", "--session", name)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("was lost: it broke off. The reply begins again:") == 1
    assert re.findall(r"surprise \S+ · version (\d)", done.stdout) == ["1", "2"]


def test_nobody_there_is_one_line(tmp_path: Path) -> None:
    done = chat("http://127.0.0.1:9", tmp_path, "hello\n")
    assert done.returncode == 1
    assert done.stderr.startswith("hope chat: No server answers at http://127.0.0.1:9")
    assert "Traceback" not in done.stderr


def _as_a_terminal_starts_it() -> None:
    """In the child: the terminal is its own, and Ctrl-C counts, also where the tests run in the background."""
    os.close(os.open(os.ttyname(0), os.O_RDWR))
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A chat on a pseudo-terminal."""

    def __init__(self, url: str, home: Path, *flags: str) -> None:
        self._screen, theirs = pty.openpty()
        command = [*COMMAND, "--url", url, "--temperature", "0", *flags]
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(home), start_new_session=True,
            preexec_fn=_as_a_terminal_starts_it,
        )  # fmt: skip
        os.close(theirs)
        self._seen = ""

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def read_until(self, pattern: str) -> str:
        """What the screen showed up to the first match, which is then forgotten."""
        deadline = time.monotonic() + 30
        while not (found := re.search(pattern, self._seen)):
            left = deadline - time.monotonic()
            assert select.select([self._screen], [], [], max(left, 0.0))[0], self._seen
            self._seen += os.read(self._screen, 4096).decode(errors="replace")
        shown, self._seen = self._seen[: found.end()], self._seen[found.end() :]
        return shown

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._screen)


def test_ctrl_c_stops_the_reply_and_the_chat_goes_on(url: str, tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    terminal = Terminal(url, tmp_path, "--session", name, "--max-tokens", "1024")
    try:
        terminal.read_until("> ")
        terminal.type("hello\r")
        terminal.read_until(r"(?s)hello\s+\S.{12}")
        terminal.type("\x03")
        terminal.read_until("nothing was learned")
        terminal.read_until("> ")
        terminal.type("/quit\r")
        assert terminal.process.wait(20) == 0
    finally:
        terminal.close()
    with HopeClient(url) as client:
        assert client.session(name)["version"] == 0
    assert "hello" in (tmp_path / ".hope_history").read_text()
