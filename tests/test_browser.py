"""What runs in a browser, in a real one: the playground, and the TypeScript client on a page of another origin.

Needs Chromium; the client also Node and npm, as its own tests do.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from server.auth import parse_keys
from tests.clients.serving import serving
from tests.clients.typescript.test_client import PACKAGE, built
from tests.server.conftest import checkpoint
from tests.server.running import with_server

__all__ = ["built", "checkpoint"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
KEY = "browser-key"
WORDS = "My dog is called Rufus."

WITHOUT = "Chromium is not installed; on Debian: apt-get install chromium"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=WITHOUT)

# What the page of the TypeScript client does: the same turn in three ways, then what its errors are.
CALLS = """async ([url, apiKey]) => {
  const { HopeClient, NotFound } = await import("/dist/index.js");
  const hope = new HopeClient(url, { apiKey });
  const asked = { max_tokens: 6, temperature: 0 };
  const session = await hope.createSession({ id: "from-a-page" });
  const whole = await hope.turn(session, "hello", asked);
  const kinds = [];
  for await (const event of hope.turnEvents(session, "hello", asked)) kinds.push(event.type);
  const conversation = await hope.stream(session);
  let streamed = "", last;
  for await (const event of conversation.turn("hello", asked)) {
    if (event.type === "turn.token") streamed += event.text;
    last = event;
  }
  conversation.close();
  const missing = await hope.session("nobody").catch((error) => error instanceof NotFound && error.code);
  const strange = await new HopeClient(url, { apiKey: "wrong" }).session(session.id).catch((error) => error.status);
  const versions = [whole.memory.version, last.turn.memory.version];
  return { versions, kinds, streamed, reply: last.turn.reply, missing, strange };
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """Where the files of the TypeScript client's package are served; by its name no origin of a server of ours."""
    handler = partial(_Quiet, directory=str(PACKAGE))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def url(checkpoint: Path, site: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = with_server(api_keys=parse_keys(f"{KEY}:default:user"), cors_origins=(site,))
    with serving(checkpoint, tmp_path_factory.mktemp("data"), settings) as url:
        yield url


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page in a profile of its own, with a key at hand where a site asks who it is."""
    context = browser.new_context(http_credentials={"username": "anyone", "password": KEY})
    page = context.new_page()
    page.set_default_timeout(20_000)
    yield page
    context.close()


def test_the_playground_chats_and_shows_what_memory_does(page: Page, url: str) -> None:
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(url)
    expect(page.locator("#status")).to_contain_text("key")  # why nothing can be said yet
    page.fill("#key", KEY)
    page.fill("#session", "at-play")
    page.click("#open")
    expect(page.locator("#status")).to_have_text("ready")
    for version in (1, 2):
        page.fill("#message", WORDS)
        page.press("#message", "Enter")
        expect(page.locator("#version")).to_contain_text(f"version {version}")
        expect(page.locator(".turn .note").nth(version - 1)).to_contain_text(f"version {version}")
    page.uncheck("#learn")
    page.fill("#message", WORDS)
    page.click("#send")
    expect(page.locator(".turn .note").nth(2)).to_contain_text("not learned")
    assert page.locator("#levels tr").count() >= 2
    assert len(str(page.locator("#curve polyline").get_attribute("points")).split()) == 3
    turns = httpx2.get(f"{url}/v1/sessions/at-play/turns", headers={"Authorization": f"Bearer {KEY}"}).json()["data"]
    assert page.locator(".turn .reply").all_text_contents()[:2] == [turn["reply"] for turn in turns]
    assert not wrong


def test_the_playground_stops_a_turn_and_finds_its_session_again(page: Page, url: str) -> None:
    page.goto(url)
    page.fill("#key", KEY)
    page.fill("#session", "stopped")
    page.click("#open")
    expect(page.locator("#status")).to_have_text("ready")
    page.fill("#message", WORDS)
    page.click("#send")
    expect(page.locator("#version")).to_contain_text("version 1")
    page.evaluate(
        """() => { state.running = addTurn("long");
        state.socket.send(JSON.stringify({ type: "turn.create", turn: { message: "long", max_tokens: 1024 } }));
        showButtons(); }"""
    )
    expect(page.locator("#send")).to_have_text("Stop")
    page.click("#send")
    expect(page.locator(".turn .note").nth(1)).to_have_text("stopped; nothing was learned")
    page.reload()
    page.fill("#key", KEY)
    page.click("#open")
    expect(page.locator("#status")).to_have_text("ready")
    expect(page.locator(".turn .mine")).to_have_text([WORDS])
    expect(page.locator("#version")).to_contain_text("version 1")


@pytest.mark.usefixtures("built")
def test_the_typescript_client_speaks_from_a_page_of_another_origin(page: Page, url: str, site: str) -> None:
    page.goto(f"{site}/package.json")
    found = page.evaluate(CALLS, [url, KEY])
    assert found["versions"] == [1, 3]
    assert (found["kinds"][0], found["kinds"][-1]) == ("turn.created", "turn.completed")
    assert found["streamed"] == found["reply"]
    assert (found["missing"], found["strange"]) == ("not_found", 401)


@pytest.mark.usefixtures("built")
def test_a_page_that_was_not_named_may_not_call(page: Page, url: str, site: str) -> None:
    said: list[ConsoleMessage] = []
    page.on("console", lambda one: said.append(one))
    other = site.replace("localhost", "127.0.0.1")
    page.goto(f"{other}/package.json")
    refused = page.evaluate(
        """async ([url, apiKey]) => {
        const { HopeClient, Unreachable } = await import("/dist/index.js");
        const hope = new HopeClient(url, { apiKey });
        return await hope.session("from-a-page").catch((error) => error instanceof Unreachable);
        }""",
        [url, KEY],
    )
    assert refused is True
    assert any("CORS" in one.text for one in said)


class _Quiet(SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""
