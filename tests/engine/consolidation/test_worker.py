"""The worker as a process: killed, doubled, stopped, without a store; the line is worked off all the same."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from redis.asyncio import Redis

from engine import run_worker
from engine.config import StoreSettings
from engine.consolidation.policy import ReplayPolicy
from engine.errors import InvalidRequest
from engine.model.hope import Hope
from engine.sessions import keys
from engine.sessions.embedded import EmbeddedStore
from engine.sessions.store import SessionStore
from tests.engine.consolidation.samples import FACTS, Recorder, Setting, until

REPOSITORY = Path(__file__).parents[3]
NUM = len(FACTS)
ENDLESS = ReplayPolicy(num_steps=1_000_000)

# A real worker, its replay so long that it is always caught in the middle; it says when it has begun.
ENDLESS_WORKER = """
import asyncio, sys
from pathlib import Path
from engine.config import StoreSettings
from engine.consolidation.policy import GenerationPolicy, ReplayPolicy
from engine.consolidation.session import SessionConsolidation
from engine.consolidation.suite import load_suite
from engine.consolidation.tenant import TenantConsolidation
from engine.consolidation.worker import Worker
from engine.model.weights import load_checkpoint
from engine.sessions.store import SessionStore
from tests.engine.consolidation.samples import Recorder

class Loud(Recorder):
    def stored(self, operation, outcome, seconds, size_bytes):
        print("begun", flush=True)

async def main():
    store = await SessionStore.connect(sys.argv[1], StoreSettings())
    model, tokenizer = load_checkpoint(Path(sys.argv[2]))
    policy = ReplayPolicy(num_steps=1_000_000)
    consolidation = SessionConsolidation(model, tokenizer, store, Loud(), policy)
    tenants = TenantConsolidation(model, tokenizer, store, Loud(), GenerationPolicy(), load_suite())
    await Worker(store, consolidation, tenants, Loud()).run(asyncio.Event())

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replay: an untrained model dreams of nothing."""
    monkeypatch.setattr("engine.consolidation.worker.SESSION_POLICY", ReplayPolicy(num_steps=4))


@contextlib.asynccontextmanager
async def running(setting: Setting, observer: Recorder) -> AsyncIterator[None]:
    """The worker as `hope worker` runs it."""
    stop = asyncio.Event()
    task = asyncio.create_task(run_worker(setting.settings, setting.stores, observer, stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(task, 30)


async def is_idle(client: Redis) -> bool:
    """Whether the line is empty and nobody works on anything."""
    return not await client.exists(keys.WORK_DUE, keys.WORK_CLAIMED, keys.WORK_TOKENS)


async def outlive_the_claim(client: Redis, setting: Setting) -> None:
    """As if the minute had passed in which a claim must be renewed."""
    await client.zadd(keys.WORK_CLAIMED, {keys.session_name(setting.tenant, setting.session_id): 0}, xx=True)


async def test_a_session_that_has_gone_quiet_is_consolidated_and_the_line_is_empty(
    setting: Setting, client: Redis
) -> None:
    observer = Recorder()
    async with running(setting, observer):
        await until(lambda: is_idle(client))
        assert await setting.marks() == (NUM + 1, NUM, NUM)
        await setting.tell("One more thing.")
        await until(lambda: len(observer.consolidations) == 2)
        await until(lambda: is_idle(client))
    assert observer.consolidations == [("accepted", NUM), ("accepted", 1)]
    assert await setting.marks() == (NUM + 3, NUM + 1, NUM + 1)


async def test_law_7_killed_in_the_middle_it_leaves_the_old_version_and_the_next_finishes_once(
    setting: Setting, client: Redis, checkpoint: Path
) -> None:
    marks, tensors = await setting.marks(), await setting.tensors()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ENDLESS_WORKER, setting.engine.redis_url, str(checkpoint)),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 120) == b"begun\n"
    await asyncio.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL

    assert await setting.marks() == marks
    assert all(torch.equal(value, tensors[name]) for name, value in (await setting.tensors()).items())
    observer = Recorder()
    async with running(setting, observer):
        await asyncio.sleep(0.5)
        assert observer.consolidations == []  # the dead worker's claim still stands
        await outlive_the_claim(client, setting)
        await until(lambda: is_idle(client))
        await setting.store.enqueue_consolidation(setting.tenant, setting.session_id)
        await until(lambda: is_idle(client))
    assert observer.consolidations == [("accepted", NUM), ("empty", 0)]
    assert await setting.marks() == (NUM + 1, NUM, NUM)


async def test_two_workers_on_one_session_commit_once(setting: Setting, client: Redis) -> None:
    first, second = Recorder(), Recorder()
    lease = await setting.acquire()
    async with setting.worker(first):
        await until(lambda: first.num_learned)
        # The first is thought dead although it lives, and waits for the lease.
        await outlive_the_claim(client, setting)
        async with setting.worker(second):
            await until(lambda: second.num_learned)
            await setting.store.release(lease)
            await until(lambda: is_idle(client))
            await until(lambda: len(first.consolidations) > 0 and len(second.consolidations) > 0)
    outcomes = [outcome for outcome, _ in first.consolidations + second.consolidations]
    assert outcomes.count("accepted") == 1
    assert set(outcomes) <= {"accepted", "fenced", "empty"}
    assert await setting.marks() == (NUM + 1, NUM, NUM)


async def test_a_worker_that_is_stopped_leaves_its_session_to_the_next_at_once(setting: Setting, client: Redis) -> None:
    observer = Recorder()
    async with setting.worker(observer, ENDLESS):
        await until(lambda: observer.transfers)
    assert await setting.marks() == (NUM, NUM, 0)
    work = await setting.store.next_consolidation("next", 1.0)
    assert work is not None
    assert (work.session_id, work.attempt) == (setting.session_id, 1)


async def test_a_damaged_memory_is_logged_and_does_not_hold_up_the_line(
    setting: Setting, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    newest = (await setting.store.versions(setting.tenant, setting.session_id))[0]
    session_keys = keys.SessionKeys(setting.tenant, setting.session_id)
    await client.set(session_keys.chunks(newest.mark, newest.num_chunks)[0], b"damaged")
    observer = Recorder()
    async with setting.worker(observer):
        await until(lambda: is_idle(client))
    assert observer.consolidations == [("failed", 0)]
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "cannot be consolidated" in record.getMessage()
    assert setting.session_id not in record.getMessage()


async def test_a_session_of_another_model_is_named_so_and_leaves_the_line(
    setting: Setting, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    observer, marks = Recorder(), await setting.marks()
    async with setting.worker(observer, model=Hope(replace(setting.model.config, retention_floor=0.5))):
        await until(lambda: is_idle(client))
    assert observer.consolidations == [("failed", 0)], "once: it would not change by itself"
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "hope relearn" in record.getMessage()
    assert await setting.marks() == marks


async def test_a_deleted_session_is_dropped_from_the_line(setting: Setting, client: Redis) -> None:
    await setting.engine.delete_session(setting.tenant, setting.session_id)
    await setting.store.enqueue_consolidation(setting.tenant, setting.session_id)
    observer = Recorder()
    async with setting.worker(observer):
        await until(lambda: is_idle(client))
    assert observer.consolidations == []


async def test_a_session_deleted_while_it_is_replayed_stays_deleted(setting: Setting, client: Redis) -> None:
    observer = Recorder()
    lease = await setting.acquire()
    async with setting.worker(observer):
        await until(lambda: observer.num_learned)
        await setting.store.release(lease)
        await setting.engine.delete_session(setting.tenant, setting.session_id)
        await until(lambda: is_idle(client))
    names = [key.decode() async for key in client.scan_iter("*")]
    assert [name for name in names if setting.session_id in name] == []


async def test_a_store_that_is_away_is_waited_for(
    checkpoint: Path, setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    with tempfile.TemporaryDirectory(prefix="hope-test-") as folder:
        server = await EmbeddedStore.start(Path(folder))
        url = server.url
        await server.stop()
        store = await SessionStore.connect(url, StoreSettings())
        away = Setting(setting.engine, store, setting.model, setting.tokenizer, setting.settings, setting.stores)
        observer = Recorder()
        async with away.worker(observer) as task:
            await until(lambda: "going on in" in caplog.text)
            assert not task.done()
            server = await EmbeddedStore.start(Path(folder))
            await store.enqueue_consolidation("acme", "nobody")
            client = Redis.from_url(url)
            await until(lambda: is_idle(client))
            await client.aclose()
        await store.close()
        await server.stop()


async def test_a_worker_without_a_store_says_so(setting: Setting) -> None:
    with pytest.raises(InvalidRequest, match="store"):
        await run_worker(setting.settings, StoreSettings(), Recorder(), asyncio.Event())
