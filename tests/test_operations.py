"""docs/OPERATIONS.md is true: its backups are made and restored, and what it names is there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.config import EngineSettings, StoreSettings
from engine.engine import Engine
from engine.evaluation.bench import measure_sizes
from engine.model.weights import load_checkpoint
from server.app import create_app
from server.auth import ROLES
from server.errors import ANSWERS
from server.metrics import Metrics
from server.settings import OPTIONS, Settings
from tests.engines import Recorder, bits, everything, loaded, say, stored_memory
from tests.server.running import running

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "OPERATIONS.md").read_text("utf-8")
MODEL = loaded()
TENANT = "default"
TOLD = ("My dog is called Rex.", "The train leaves at 17:45, I think.", "He likes the river in spring.")
Job = Callable[[str, str | None, Path], Awaitable[int]]


async def _opened(data_dir: Path) -> Engine:
    return await Engine.open(EngineSettings(), StoreSettings(data_dir=data_dir), Recorder(), MODEL)


async def _told(data_dir: Path) -> Engine:
    """A server's engine with two sessions, one of them of two turns."""
    engine = await _opened(data_dir)
    for name, messages in (("one", TOLD[:2]), ("two", TOLD[2:])):
        await engine.create_session(TENANT, name, {"who": name}, False)
        for message in messages:
            await say(engine, name, message, TENANT, idempotency_key=message)
    return engine


async def _known(engine: Engine) -> dict[str, object]:
    """Of every session what there is to be known: its turns, its memory, and what it answers."""
    found: dict[str, object] = {}
    for session in (await engine.sessions(TENANT, 9, None))[0]:
        turns, _ = await engine.turns(TENANT, session.id, 9, None)
        answer = await say(engine, session.id, "Who is Rex?", TENANT, learn=False)
        memory = bits(await stored_memory(engine, session.id, TENANT))
        found[session.id] = (session.version, session.metadata, turns, memory, answer.reply)
    return found


def _jobs() -> dict[str, Job]:
    """The functions of the page's only program."""
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(program, "docs/OPERATIONS.md", "exec"), names)
    return {name: names[name] for name in ("back_up", "restore")}


async def test_a_folder_copied_while_stopped_is_a_backup(tmp_path: Path) -> None:
    engine = await _told(tmp_path / "data")
    known, stored = await _known(engine), await everything(engine.redis_url)
    await engine.close()
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    shutil.rmtree(tmp_path / "data")
    engine = await _opened(tmp_path / "copy")
    assert {key for key in stored if key.endswith(b":turns")}
    assert await everything(engine.redis_url) == stored
    assert await _known(engine) == known
    await engine.close()


async def test_sessions_exported_while_running_are_restored_on_another_server(tmp_path: Path) -> None:
    jobs, folder = _jobs(), tmp_path / "backup"
    first, second = await _told(tmp_path / "first"), await _opened(tmp_path / "second")
    async with running(first, Settings(), Metrics()) as server:
        assert await jobs["back_up"](f"http://127.0.0.1:{server.port}", None, folder) == 2
    assert sorted(file.name for file in folder.iterdir()) == ["one.safetensors", "two.safetensors"]
    async with running(second, Settings(), Metrics()) as server:
        assert await jobs["restore"](f"http://127.0.0.1:{server.port}", None, folder) == 2
    assert await _known(second) == await _known(first)
    assert not (await second.session(TENANT, "one")).contribute
    assert [one.version for one in await second.versions(TENANT, "one")] == [2], "older versions are not in a file"
    await first.close()
    await second.close()


def test_every_alert_has_its_line_and_no_other() -> None:
    rules = yaml.safe_load((REPOSITORY / "deploy" / "alerts.yml").read_text("utf-8"))["groups"]
    alerts = [rule["alert"] for group in rules for rule in group["rules"]]
    told = _section("Alerts")
    assert re.findall(r"^\| `(\w+)` \| .+ \| .+ \|$", told, re.MULTILINE) == alerts


def test_every_setting_exists_and_defaults_are_as_told() -> None:
    options = {option.variable: option for option in OPTIONS}
    settings = Settings()
    named = set(re.findall(r"\bHOPE_[A-Z_]+\b", PAGE))
    assert len(named) > 15
    assert named - options.keys() == set()
    told = {name: int(value) for name, value in re.findall(r"`(HOPE_\w+)` \((\d+)\)", PAGE)}
    assert len(told) >= 4
    for variable, value in told.items():
        option = options[variable]
        assert getattr(getattr(settings, option.section), option.name) == value, variable


async def test_every_path_and_metric_exists(tmp_path: Path) -> None:
    engine = await _opened(tmp_path)
    app = create_app(engine, Settings(), Metrics())
    paths = {re.sub(r"{\w+}", "{id}", path) for path in app.openapi()["paths"]} | {"/metrics"}
    await engine.close()
    named = set(re.findall(r"`(?:GET |POST )?(/(?:livez|readyz|metrics|v1/[\w/{}]+))`", PAGE))
    assert {"/livez", "/readyz", "/metrics", "/v1/consolidations", "/v1/sessions/{id}"} <= named
    assert named - paths == set()
    families = {family.name for family in Metrics().registry.collect()}
    assert set(re.findall(r"`(hope_\w+?)(?:_total)?`", PAGE)) - families == set()
    assert "metrics" in ROLES


def test_every_answer_has_the_status_of_the_table() -> None:
    from engine import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.HopeError)]
    status = {(ANSWERS[next(a for a in kind.__mro__ if a in ANSWERS)].status, kind.code) for kind in kinds}
    told = re.findall(r"^\| (\d{3}) `(\w+)` \|", _section("Limits and overload"), re.MULTILINE)
    assert len(told) >= 8
    assert {(int(number), code) for number, code in told} <= status


def test_the_sizes_are_the_shipped_checkpoints() -> None:
    """What follows from its shape; what 50 turns leave is measured by `hope bench`."""
    sizes = measure_sizes(load_checkpoint()[0])
    told = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) million \|", _section("Sizing"), re.MULTILINE))
    for name, size in sizes.items():
        assert float(told[name]) == pytest.approx(size / 1e6, abs=0.006), name


def test_the_page_is_short_and_linked() -> None:
    assert len(PAGE.splitlines()) <= 250
    assert "OPERATIONS.md" in (REPOSITORY / "docs" / "API.md").read_text("utf-8").split("## ")[0]
    for anchor in re.findall(r"API\.md#([\w-]+)", PAGE):
        headings = re.findall(r"^## (.+)$", (REPOSITORY / "docs" / "API.md").read_text("utf-8"), re.MULTILINE)
        assert anchor in {heading.lower().replace(" ", "-") for heading in headings}


def _section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
