"""A change of the checkpoint: what sessions know is read again by the new model, and committed as one version."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from redis.asyncio import Redis
from torch import Tensor

from engine.config import EngineSettings, StoreSettings
from engine.errors import OtherModel
from engine.model.portable import unpack_row
from engine.model.weights import load_checkpoint
from engine.relearning import run_relearning
from tests.engine.upgrades import BOUND, NEW, OLD, TOLD, heads, publish, relearn, relearning, tell_everything
from tests.engines import TENANT, Recorder, bits, everything, opened, say, stored_memory
from tests.tiny import memory_distance, tiny_tokenizer, write_tiny_checkpoint

NUM_KILLED = 3


@pytest.fixture(autouse=True)
async def empty_store(redis_url: str) -> None:
    client = Redis.from_url(redis_url)
    await client.flushall()
    await client.aclose()


async def test_transcript_and_keys_stay_and_the_worker_begins_anew(redis_url: str) -> None:
    turns = await tell_everything(redis_url)
    before = await heads(redis_url)
    kept = {key: value for key, value in (await everything(redis_url)).items() if b":memory:" not in key}
    await relearn(redis_url)
    after = await everything(redis_url)
    changed = {key for key, value in kept.items() if after[key] != value}
    assert {key.rpartition(b":")[2] for key in changed} <= {b"head", b"versions", b"due"}
    for name, head in (await heads(redis_url)).items():
        assert head.num_consolidated_turns == 0
        old = before[name].session
        assert head.session.version == old.version + 1
        counts = (head.session.num_turns, head.session.num_tokens, head.history)
        assert counts == (old.num_turns, old.num_tokens, before[name].history)
    async with opened(redis_url, NEW) as new:
        again = await say(new, "s-1", TOLD["s-1"][0], max_tokens=3, idempotency_key=TOLD["s-1"][0])
        assert again.id == turns["s-1"][0].id, "its key is still known"
        line = {(await new.store.next_consolidation("w", 1.0)).session_id for _ in TOLD}  # type: ignore[union-attr]
        assert line == set(TOLD)


async def test_who_is_done_is_passed_over_and_a_dry_run_changes_nothing(redis_url: str) -> None:
    await tell_everything(redis_url)
    before = await everything(redis_url)
    counted = await relearn(redis_url, dry_run=True)
    assert await everything(redis_url) == before
    done = await relearn(redis_url)
    assert counted == done
    before = await everything(redis_url)
    assert (await relearn(redis_url)).relearned == 0
    assert await everything(redis_url) == before


async def test_the_old_model_served_again_goes_back_to_what_it_knew(redis_url: str) -> None:
    await tell_everything(redis_url)
    async with opened(redis_url, OLD) as old:
        before = bits(await stored_memory(old, "s-1"))
    await relearn(redis_url)
    async with opened(redis_url, OLD) as old:
        with pytest.raises(OtherModel):
            await say(old, "s-1", "Who is Rex?")
        assert (await old.rollback(TENANT, "s-1", 3)).version == 5
        assert bits(await stored_memory(old, "s-1")) == before
        assert (await say(old, "s-1", "Who is Rex?")).index == 3


async def test_a_session_that_was_rolled_back_to_nothing_gets_the_new_nothing(redis_url: str) -> None:
    await tell_everything(redis_url)
    async with opened(redis_url, OLD) as old:
        await old.rollback(TENANT, "s-1", 0)
    assert (await relearn(redis_url)).relearned == 2
    async with opened(redis_url, NEW) as new:
        assert await stored_memory(new, "s-1") == {}
        assert (await say(new, "s-1", "Hello.")).index == 0


async def test_generation_0_becomes_active_and_a_new_one_is_asked_for(
    redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await tell_everything(redis_url)
    await publish(redis_url)
    before = await everything(redis_url)
    assert (await relearn(redis_url, dry_run=True)).generations == 1
    assert await everything(redis_url) == before
    assert (await relearn(redis_url)).generations == 1
    assert "generation 1 is of another model, so 0 is active now" in capsys.readouterr().out
    async with opened(redis_url, NEW) as new:
        assert (await new.store.generations.standing(TENANT)).active == 0
        assert [one.status for one in await new.consolidations(TENANT)] == ["running", "accepted"]
        assert (await say(new, "s-1", "Hello.")).memory.generation == 0
        waiting = [await new.store.next_consolidation("w", 1.0) for _ in range(3)]
        assert "" in {work.session_id for work in waiting if work is not None}, "the tenant is in the worker's line"
    assert (await relearn(redis_url)).generations == 0


async def test_sessions_are_read_under_an_active_generation_of_the_new_model(redis_url: str) -> None:
    await tell_everything(redis_url)
    number = await publish(redis_url, NEW)
    await relearn(redis_url)
    assert {head.session.generation for head in (await heads(redis_url)).values()} == {number}


async def test_a_turn_that_runs_meanwhile_wins(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old model is still served somewhere: its turn comes between reading and commit, and is read as well."""
    await tell_everything(redis_url)
    async with opened(redis_url, OLD) as old, relearning(redis_url) as made:
        read, came_between = made._reading.read, asyncio.Event()

        async def slowly(*args: object) -> dict[str, Tensor]:
            tensors = await read(*args)  # type: ignore[arg-type]
            if not came_between.is_set():
                came_between.set()
                await say(old, "s-2", "One more thing.")
            return tensors

        monkeypatch.setattr(made._reading, "read", slowly)
        await made.run()
        assert (made.done.relearned, made.done.turns, made.done.failed) == (2, 5, 0)
    head = (await heads(redis_url))["s-2"]
    assert (head.session.version, head.session.num_turns) == (3, 2)


async def test_a_session_that_never_rests_is_left_and_named(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await tell_everything(redis_url)
    async with opened(redis_url, OLD) as old, relearning(redis_url) as made:
        read = made._reading.read

        async def disturbed(tenant: str, session: object, shared: object) -> dict[str, Tensor]:
            tensors = await read(tenant, session, shared)  # type: ignore[arg-type]
            if session.id == "s-2":  # type: ignore[attr-defined]
                await say(old, "s-2", "One more thing.")
            return tensors

        monkeypatch.setattr(made._reading, "read", disturbed)
        await made.run()
        assert (made.done.relearned, made.done.failed) == (1, 1)
        assert "session 's-2': left as it was" in capsys.readouterr().out
        assert (await say(old, "s-2", "Still yours.")).index == 4


async def test_killed_in_the_middle_it_goes_on_where_it_was(redis_url: str, tmp_path: Path) -> None:
    """The real command with -9, after its first commit and before its last."""
    tokenizer = tiny_tokenizer()
    async with opened(redis_url, OLD) as old:
        for number in range(NUM_KILLED):
            await old.create_session(TENANT, f"k-{number}", {}, False)
            await say(old, f"k-{number}", "My dog is called Rex. " * 6, max_tokens=0)
    checkpoint = write_tiny_checkpoint(tmp_path / "new", 1, writes_hard=False)
    command = [sys.executable, "-m", "server.cli", "relearn", "--redis-url", redis_url, "--max-batch-rows", "1"]
    process = await asyncio.create_subprocess_exec(*command, "--checkpoint", str(checkpoint), stderr=subprocess.DEVNULL)
    client = Redis.from_url(redis_url)
    try:

        async def first_commit() -> bool:
            head = await client.hget(f"hope:1:{{{TENANT}:k-0}}:head", "version")
            return bool(head == b"2")

        async with asyncio.timeout(60):
            while not await first_commit():
                assert process.returncode is None
                await asyncio.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await client.aclose()
    new, _ = load_checkpoint(checkpoint)
    async with opened(redis_url, (new, tokenizer)) as engine_of_new:
        versions = [(await engine_of_new.session(TENANT, f"k-{number}")).version for number in range(NUM_KILLED)]
        assert 1 in versions
        assert 2 in versions
    stores, recorder = StoreSettings(redis_url=redis_url), Recorder()
    done = await run_relearning(EngineSettings(checkpoint=checkpoint), stores, recorder)
    assert (done.sessions, done.relearned, done.failed) == (NUM_KILLED, versions.count(1), 0)
    async with opened(redis_url, (new, tokenizer)) as engine_of_new:
        versions = [(await engine_of_new.session(TENANT, f"k-{number}")).version for number in range(NUM_KILLED)]
        assert set(versions) == {2}
        memories = [await stored_memory(engine_of_new, f"k-{number}") for number in range(NUM_KILLED)]
        assert all(memory_distance(unpack_row(one, new), unpack_row(memories[0], new)) < BOUND for one in memories)
