"""A store that sessions of one model lie in, and another model that is to go on with them."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from torch import Tensor

import engine.loop
from engine.config import EngineSettings
from engine.core import Turn
from engine.engine import Engine
from engine.model.shared import initial_shared, pack_shared
from engine.model.weights import fingerprint
from engine.relearning import Relearned, Relearning
from engine.sampler import Choice
from engine.sessions.generations import Generation, Publication, session_hash
from engine.sessions.records import Head, now_iso
from engine.sessions.snapshot import pack
from engine.tokenizer import END
from tests.engines import TENANT, Recorder, loaded, opened, say
from tests.tiny import tiny_model, tiny_tokenizer

TOLD = {
    "s-1": ("My dog is called Rex.", "The train leaves at 17:45, I think.", "He likes the river in spring."),
    "s-2": ("Zürich is lovely in spring, said the owl to the fox.",),
}
# Law 2's, for floats; and what is stored between turns is bfloat16, of which the last digit may fall otherwise.
BOUND = 1e-4 + 2**-8
OLD, NEW = loaded(), (tiny_model(1, vocab_size=tiny_tokenizer().vocab_size, writes_hard=False), tiny_tokenizer())


async def tell_everything(redis_url: str) -> dict[str, list[Turn]]:
    """The sessions as the old model made them."""
    turns: dict[str, list[Turn]] = {}
    async with opened(redis_url, OLD) as old:
        for name, messages in TOLD.items():
            await old.create_session(TENANT, name, {}, name == "s-1")
            turns[name] = [await say(old, name, message, max_tokens=3, idempotency_key=message) for message in messages]
    return turns


@asynccontextmanager
async def relearning(redis_url: str, *, dry_run: bool = False) -> AsyncIterator[Relearning]:
    async with opened(redis_url, NEW) as new:
        made = Relearning(*NEW, new.store, EngineSettings(), Recorder(), dry_run=dry_run)
        try:
            yield made
        finally:
            await made.close()


async def relearn(redis_url: str, **how: bool) -> Relearned:
    async with relearning(redis_url, **how) as made:
        await made.run()
        return made.done


async def live(new: Engine, session_id: str, turns: Sequence[Turn], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same messages in live turns of the new model, whose sampler is made to say the same replies."""
    await new.create_session(TENANT, session_id, {}, False)
    for turn in turns:
        tokens = itertools.chain(new.tokenizer.encode(turn.reply), [END])

        def forced(_: Tensor, choices: Sequence[Choice], tokens: itertools.chain[int] = tokens) -> list[int]:
            return [next(tokens) for _ in choices]

        monkeypatch.setattr(engine.loop, "sample", forced)
        assert (await say(new, session_id, turn.message, max_tokens=999)).reply == turn.reply


async def publish(redis_url: str, model: tuple[object, object] = OLD) -> int:
    """A generation of a model, active now."""
    async with opened(redis_url, OLD) as old:
        store, which = old.store.generations, model[0]
        asked, standing = await store.open(TENANT), await store.standing(TENANT)
        number = standing.latest + 1
        known = {session_hash(TENANT, await old.session(TENANT, "s-1")): 3}
        made = Generation(number, standing.active, asked.consolidation.id, now_iso(), 0, "", 0, "", known, known)
        weights = pack(pack_shared(initial_shared(which)), fingerprint=fingerprint(which))  # type: ignore[arg-type]
        ended = replace(asked.consolidation, status="accepted", to_generation=number, finished_at=now_iso())
        await store.publish(TENANT, Publication(ended, standing, made, weights, {}))
        return number


async def heads(redis_url: str) -> dict[str, Head]:
    async with opened(redis_url, NEW) as new:
        return {name: await new.store.head(TENANT, name) for name in TOLD}
