"""The engine's thread with real models: turns end by themselves, by their caller or by the clock, `cms.fast` learns on
its own clock, and what is reported is what happened."""

from __future__ import annotations

import contextlib
import queue
import time

import pytest
import torch

from engine.config import CMS_FAST, TITANS, LevelConfig
from engine.errors import DeadlineExceeded, TurnCancelled
from engine.live import Failed, Finished, Spoken
from engine.model.hope import POSITION, Memory
from engine.model.portable import pack_row, unpack_row
from tests.engine.loops import FOREVER, Asked, make_loop, moved, started, tireless, until
from tests.tiny import CHUNK_MEMORY, initial, memory_distance

LONG = "The owl of Zürich said to the fox that the train leaves at 17:45, so do not be late. " * 3
# Numbers that agree in float32 may round to neighbours of the stored precision (8 significant bits).
STORED_TOLERANCE = 2.0**-8


def test_a_turn_reads_speaks_learns_and_is_finished() -> None:
    loop, _ = make_loop()
    before = initial(loop.model)
    with started(loop):
        asked = Asked(loop, memory=before, max_tokens=5)
        spoken, end = "", asked.heard()
        while isinstance(end, Spoken):
            spoken, end = spoken + end.text, asked.heard()
    assert isinstance(end, Finished)
    assert (end.finish_reason, end.completion_tokens, end.reply) == ("length", 5, spoken)
    assert end.prompt_tokens == len(asked.live.prompt)
    assert 0.0 < end.surprise < 50.0
    assert 0.0 <= end.queue_s <= end.first_token_s <= end.total_s
    assert end.memory is not None
    assert end.tensors is not None
    assert int(end.memory[POSITION]) == end.prompt_tokens + 5 + 1
    # Law 3 from its first step on: what goes on in this process is exactly what the store would give back.
    assert _equal(unpack_row(end.tensors, loop.model), end.memory)
    assert _equal(pack_row(end.memory, loop.model.config.chunk_projections), end.tensors)
    assert _equal(before, initial(loop.model))


def _equal(found: Memory, expected: Memory) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], value) for name, value in expected.items())


def test_who_asks_is_told_how_likely_each_token_was_alone_and_among_others() -> None:
    told = []
    for num_others in (0, 3):
        loop, _ = make_loop()
        with started(loop):
            asked = Asked(loop, top_logprobs=2)
            others = [Asked(loop, message="Another message.") for _ in range(num_others)]
            signals = [asked.heard()]
            while isinstance(signals[-1], Spoken):
                signals.append(asked.heard())
            assert all(isinstance(other.end(), Finished) for other in others)
        told.append([token for signal in signals if isinstance(signal, Spoken) for token in signal.logprobs])
        end = signals[-1]
        assert isinstance(end, Finished)
        assert b"".join(token.data or b"" for token in told[-1]).decode(errors="replace") == end.reply
    alone, together = told
    assert [token.text for token in alone] == [token.text for token in together]
    assert [token.logprob for token in alone] == pytest.approx([token.logprob for token in together], abs=1e-3)
    assert all(len(token.top) == 2 and token.logprob == token.top[0].logprob for token in alone)


def test_a_turn_that_learns_nothing_gives_no_memory() -> None:
    loop, recorder = make_loop(learn_every_tokens=8)
    with started(loop):
        quiet = Asked(loop, learn=False).finished()
        learned = Asked(loop).finished()
    assert (quiet.memory, quiet.tensors) == (None, None)
    assert learned.memory is not None
    assert len(moved(recorder, CMS_FAST)) == learned.memory[f"{CMS_FAST}.updates"]
    assert recorder.counted == {"learned": learned.prompt_tokens}


def test_a_turn_without_a_reply_is_read_and_learned() -> None:
    loop, recorder = make_loop()
    with started(loop):
        asked = Asked(loop, max_tokens=0)
        end = asked.finished()
    assert (end.reply, end.finish_reason, end.completion_tokens) == ("", "stop", 0)
    assert end.memory is not None
    assert int(end.memory[POSITION]) == end.prompt_tokens == len(asked.live.prompt)
    assert moved(recorder, CMS_FAST) == ["applied"]
    assert recorder.first_tokens_s == recorder.intervals_s == []


def test_a_cancelled_turn_ends_as_such_and_its_neighbour_goes_on() -> None:
    loop, recorder = make_loop()
    with started(loop):
        neighbour = Asked(loop, max_tokens=FOREVER)
        asked = Asked(loop, max_tokens=FOREVER)
        assert isinstance(asked.heard(), Spoken)
        asked.live.cancelled = True
        assert isinstance(asked.error(), TurnCancelled)
        spoken = neighbour.live.completion_tokens
        until(lambda: neighbour.live.completion_tokens > spoken + 3)
        assert loop.load == (0, 1)
    assert 2 in recorder.batches
    assert recorder.updates == [], "what was cancelled has learned nothing"


def test_a_turn_past_its_deadline_ends_as_such() -> None:
    loop, recorder = make_loop()
    with started(loop):
        asked = Asked(loop, max_tokens=FOREVER, timeout_s=0.1)
        assert isinstance(asked.error(), DeadlineExceeded)
        assert 0.1 <= time.monotonic() - asked.live.arrived < 5.0
        assert asked.live.completion_tokens > 0
        assert Asked(loop).finished().reply
    assert len(moved(recorder, CMS_FAST)) == 1


def test_a_turn_that_waits_for_a_row_is_told_when_its_deadline_passes() -> None:
    loop, _ = make_loop(max_batch_rows=1)
    with started(loop):
        long = Asked(loop, max_tokens=FOREVER)
        assert isinstance(long.heard(), Spoken)
        waiting = Asked(loop, timeout_s=0.1)
        with contextlib.suppress(queue.Empty):
            signal = waiting.heard(timeout_s=3.0)
            assert isinstance(signal, Failed)
            assert isinstance(signal.error, DeadlineExceeded)
            long.live.cancelled = True
            return
        pytest.fail("3 s after its deadline the turn still waits")


def test_turns_wait_for_a_row_in_the_order_they_came() -> None:
    loop, recorder = make_loop(max_batch_rows=2)
    asked = [Asked(loop) for _ in range(5)]
    assert loop.load == (5, 0)
    with started(loop):
        ends = [turn.finished() for turn in asked]
    assert max(recorder.batches) == 2
    begun = [turn.live.started for turn in asked]
    assert begun == sorted(begun)
    assert ends[4].queue_s > ends[0].first_token_s
    assert recorder.queues[0] == (3, 2)


def test_a_loop_that_stops_tells_everyone() -> None:
    loop, _ = make_loop(max_batch_rows=1)
    loop.start()
    running = Asked(loop, max_tokens=FOREVER)
    assert isinstance(running.heard(), Spoken)
    waiting = Asked(loop)
    assert loop.alive
    loop.stop()
    assert isinstance(running.error(), TurnCancelled)
    assert isinstance(waiting.error(), TurnCancelled)
    assert not loop.alive


def test_a_turn_handed_to_a_loop_that_has_stopped_is_told() -> None:
    loop, _ = make_loop()
    loop.start()
    loop.stop()
    assert isinstance(Asked(loop).heard(timeout_s=2.0), Failed)


def test_a_thread_that_was_not_seen_for_long_counts_as_dead() -> None:
    loop, _ = make_loop(heartbeat_timeout_s=5.0)
    assert not loop.alive
    with started(loop):
        until(lambda: loop.alive)
        loop.heartbeat -= 6.0
        assert not loop.alive
        until(lambda: loop.alive)


def _fast_updates(message: str, learn_every_tokens: int) -> tuple[int, int]:
    """(tokens of the message's turn, steps that `cms.fast` took)"""
    loop, recorder = make_loop(learn_every_tokens=learn_every_tokens)
    with started(loop):
        end = Asked(loop, message, max_tokens=3).finished()
    assert end.memory is not None
    steps = moved(recorder, CMS_FAST)
    assert steps == ["applied"] * len(steps)
    assert int(end.memory[f"{CMS_FAST}.updates"]) == len(steps)
    # Every token is learned once; a rest of one or two says nothing that could be learned.
    assert 0 <= end.prompt_tokens - recorder.counted["learned"] < 3
    return end.prompt_tokens, len(steps)


@pytest.mark.parametrize("learn_every_tokens", [CHUNK_MEMORY, 2 * CHUNK_MEMORY, 5 * CHUNK_MEMORY])
def test_cms_fast_steps_on_its_clock_inside_a_long_message(learn_every_tokens: int) -> None:
    num_tokens, num_steps = _fast_updates(LONG, learn_every_tokens)
    assert num_tokens > 15 * CHUNK_MEMORY
    whole, rest = divmod(num_tokens, learn_every_tokens)
    assert num_steps == whole + (rest > 2)


def test_cms_fast_steps_once_where_the_message_is_shorter_than_its_clock() -> None:
    assert _fast_updates(LONG, 512)[1] == 1


def test_what_cms_fast_learned_inside_a_message_is_used_for_its_rest() -> None:
    surprise, word = {}, "and Rex likes the river "
    for learn_every_tokens in (16, 512):
        loop, _ = make_loop(learn_every_tokens=learn_every_tokens)
        with started(loop):
            surprise[learn_every_tokens] = Asked(loop, word * 20, max_tokens=0).finished().surprise
    assert surprise[16] < surprise[512]


def test_law_2_a_long_message_is_learned_as_alone() -> None:
    """The clock of `cms.fast` counts the turn's tokens, not the shares that the batch happened to allow."""
    model = tireless(chunk_memory=64, chunk_projections=64)
    memories = []
    for num_neighbours in (0, 9):
        loop, recorder = make_loop(model, max_batch_rows=16, learn_every_tokens=70)
        with started(loop):
            for neighbour in [Asked(loop, max_tokens=FOREVER, learn=False) for _ in range(num_neighbours)]:
                assert isinstance(neighbour.heard(), Spoken)
            asked = Asked(loop, LONG, max_tokens=3)
            end = asked.finished()
            assert end.memory is not None
            memories.append(end.memory)
        assert len(moved(recorder, CMS_FAST)) > 1
        assert max(recorder.batches) == 1 + num_neighbours
    assert memory_distance(memories[1], memories[0]) <= STORED_TOLERANCE


def test_what_a_turn_reports() -> None:
    loop, recorder = make_loop()
    with started(loop):
        first = Asked(loop, max_tokens=6)
        first.finished()
        after_first = len(recorder.batches)
        assert recorder.batches == [1] * after_first
        # Reading in shares that end with a chunk, then a token a step, the last one with the END that closes it.
        assert after_first >= 6 + len(first.live.prompt) // CHUNK_MEMORY
        assert len(recorder.first_tokens_s) == 1
        assert recorder.first_tokens_s == [first.live.first_token - first.live.arrived]
        assert len(recorder.intervals_s) == 5
        assert sum(recorder.intervals_s) == pytest.approx(first.live.last_token - first.live.first_token)
        assert moved(recorder, CMS_FAST) == ["applied"]
        assert moved(recorder, TITANS) == ["applied"] * (first.live.taken // CHUNK_MEMORY)
        assert all(norm > 0.0 for _, _, norm in recorder.updates)
        assert (0, 1) in recorder.queues
        until(lambda: recorder.queues[-1] == (0, 0))
        quiet = Asked(loop, max_tokens=1, learn=False)
        quiet.finished()
    assert len(recorder.first_tokens_s) == 2
    assert len(recorder.intervals_s) == 5
    assert len(moved(recorder, CMS_FAST)) == 1, "a turn that learns nothing reports no update"


def test_a_level_that_did_not_move_reports_that_it_skipped() -> None:
    loop, recorder = make_loop(tireless(levels=(LevelConfig(CMS_FAST, 16, "session", 0.0),)))
    with started(loop):
        asked = Asked(loop)
        assert asked.finished().memory is not None
    assert [update for update in recorder.updates if update[0] == CMS_FAST] == [(CMS_FAST, "skipped", 0.0)]


def test_a_turn_too_short_to_learn_from_reports_no_step() -> None:
    loop, recorder = make_loop()
    with started(loop):
        assert Asked(loop, "", max_tokens=0).finished().prompt_tokens == 2
    assert recorder.updates == []
