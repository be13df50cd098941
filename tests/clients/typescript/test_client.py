"""The TypeScript client: it compiles, its package holds what it should, and its own tests pass against a live server.

Needs Node and npm, and for the first run npm's registry, for the compiler.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import hope_client
import pytest

from server.auth import parse_keys
from tests.clients.serving import serving
from tests.server.conftest import checkpoint
from tests.server.running import with_server

__all__ = ["checkpoint"]

PACKAGE = Path(__file__).parents[3] / "clients" / "typescript"
KEY = "test-key"
OLDEST_NODE = (20, 3)
# What npm says when there is no way to its registry.
NO_WAY = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ERR_SOCKET_TIMEOUT", "ENETUNREACH")


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=PACKAGE, env=environment, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="session")
def built() -> None:
    """The client and its tests, compiled by what package-lock.json names."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    version = tuple(int(part) for part in re.findall(r"\d+", run("node", "--version").stdout)[:2])
    if version < OLDEST_NODE:
        pytest.skip(f"the client needs Node {'.'.join(map(str, OLDEST_NODE))} or newer, this is {version}")
    locked, found = PACKAGE / "package-lock.json", PACKAGE / "node_modules" / ".package-lock.json"
    if not found.is_file() or found.stat().st_mtime < locked.stat().st_mtime:
        done = run("npm", "ci", "--prefer-offline", "--no-audit", "--no-fund")
        if any(code in done.stderr for code in NO_WAY):
            pytest.skip("npm's registry cannot be reached, and the compiler is not installed")
        assert done.returncode == 0, done.stderr
    done = run("npm", "run", "pretest", "--silent")
    assert done.returncode == 0, done.stdout


@pytest.mark.usefixtures("built")
def test_it_does_what_it_says_against_a_live_server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = with_server(api_keys=parse_keys(f"{KEY}:default:operator"))
    with serving(checkpoint, tmp_path_factory.mktemp("data"), settings) as url:
        done = run("npm", "test", "--ignore-scripts", "--silent", HOPE_URL=url, HOPE_API_KEY=KEY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"pass (\d+)", done.stdout)[-1]) > 20


@pytest.mark.usefixtures("built")
def test_the_package_holds_the_build_and_nothing_else() -> None:
    done = run("npm", "pack", "--dry-run", "--json", "--ignore-scripts", "--silent")
    assert done.returncode == 0, done.stderr
    names = {file["path"] for file in json.loads(done.stdout)[0]["files"]}
    modules = {path.stem for path in (PACKAGE / "src").glob("*.ts")}
    built = {f"dist/{name}{suffix}" for name in modules for suffix in (".js", ".d.ts")}
    assert names == built | {"package.json", "README.md", "LICENSE"}
    assert "dependencies" not in json.loads((PACKAGE / "package.json").read_text("utf-8"))


def test_both_clients_offer_the_same() -> None:
    """Methods of the client and kinds of errors, one for one; only the spelling differs."""
    source = (PACKAGE / "src" / "client.ts").read_text("utf-8")
    theirs = set(re.findall(r"^  ([a-z][A-Za-z]+)\(", source, re.MULTILINE)) - {"constructor"}
    ours = {name for name in vars(hope_client.AsyncHopeClient) if not name.startswith("_")}
    # `open` is an older name of `stream`; fetch keeps no connection that would have to be closed.
    spelled = {re.sub("_(.)", lambda found: found.group(1).upper(), name) for name in ours - {"open", "close"}}
    assert theirs == spelled
    errors = set(re.findall(r"^export class (\w+)", (PACKAGE / "src" / "errors.ts").read_text("utf-8"), re.MULTILINE))
    assert errors == {kind for kind in vars(hope_client.errors) if kind[0].isupper() and kind in hope_client.__all__}
