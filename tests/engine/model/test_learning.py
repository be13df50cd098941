"""How a CMS level learns from text: less surprise afterwards, in its own row and level and nowhere else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from engine.config import CMS_FAST, CMS_MEDIUM, LevelConfig
from engine.errors import InvalidRequest
from engine.model.hope import Hope, Memory
from engine.model.learning import SURPRISE_CEILING_NATS, Learned, Lesson, RowLesson, learn, learn_rows, level_named
from engine.model.shared import initial_shared, with_shared
from tests.tiny import distance, initial, memory_distance, named_model, random_tokens, row_of, same_bits, tiny_model

LEVELS = (CMS_FAST, CMS_MEDIUM)


def _lesson(model: Hope, lengths: list[int], seed: int = 3) -> Lesson:
    tokens = random_tokens(model, len(lengths), max(lengths), seed)
    counts = torch.zeros(tokens.shape)
    for row, length in enumerate(lengths):
        counts[row, 1:length] = 1
        tokens[row, length:] = 0
    return Lesson(tokens, torch.tensor(lengths), counts)


def _repeat(model: Hope, name: str, lesson: Lesson, times: int, rate: float = 1.0) -> tuple[Memory, list[Learned]]:
    fresh = initial(model, lesson.tokens_BT.shape[0])
    memory, seen = fresh, []
    for _ in range(times):
        learned_from = {**fresh, **{k: v for k, v in memory.items() if k.startswith("cms.")}}
        memory, learned = learn(model, name, learned_from, memory, lesson, rate)
        seen.append(learned)
    return memory, seen


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("model_name", ["initial", "zero"])
def test_law_9_a_lesson_makes_its_text_less_surprising(model_name: str, name: str) -> None:
    model = named_model(model_name)
    _, seen = _repeat(model, name, _lesson(model, [30, 30]), times=12)
    first, last = seen[0].surprise_B, seen[-1].surprise_B
    assert bool((last < first - 0.1).all())
    assert bool((seen[0].update_norm_B > 0).all())


@pytest.mark.parametrize("name", LEVELS)
def test_only_the_named_level_moves(name: str) -> None:
    model = named_model("initial")
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    fresh = initial(model)
    after, _ = learn(model, name, fresh, fresh, _lesson(model, [20]))
    moved = {key for key, value in after.items() if not torch.equal(value, fresh[key])}
    assert moved == {f"{name}.{i}.{part}" for i in range(2) for part in ("w2", "w1")} | {f"{name}.updates"}
    assert after[f"{name}.updates"].tolist() == [1]
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_surprise_is_the_mean_negative_log_likelihood_of_what_counts() -> None:
    model = named_model("initial")
    tokens = random_tokens(model, 1, 9)
    counts = torch.tensor([[0.0, 1, 0, 1, 1, 0, 0, 1, 0]])
    fresh = initial(model)
    _, learned = learn(model, CMS_FAST, fresh, fresh, Lesson(tokens, torch.tensor([9]), counts))
    with torch.no_grad():
        logits, _ = model(tokens, fresh)
    losses = [float(functional.cross_entropy(logits[0, t - 1], tokens[0, t])) for t in (1, 3, 4, 7)]
    assert float(learned.surprise_B[0]) == pytest.approx(sum(losses) / 4, rel=1e-5)


def test_law_2_a_row_learns_alone_as_in_a_padded_batch() -> None:
    model = named_model("initial")
    lesson, fresh = _lesson(model, [25, 7, 0, 18]), initial(model, 4)
    together, learned = learn(model, CMS_FAST, fresh, fresh, lesson)
    for row in (0, 1, 3):
        length = int(lesson.lengths_B[row])
        part = Lesson(
            lesson.tokens_BT[row : row + 1, :length],
            lesson.lengths_B[row : row + 1],
            lesson.counts_BT[row : row + 1, :length],
        )
        alone, one = learn(model, CMS_FAST, row_of(fresh, row), row_of(fresh, row), part)
        assert float(learned.update_norm_B[row]) == pytest.approx(float(one.update_norm_B[0]), rel=1e-4)
        for key, value in alone.items():
            assert distance(together[key][row : row + 1].float(), value.float()) <= 1e-4, key
    assert same_bits(row_of(together, 2), row_of(fresh, 2))


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), max_size=6))
@settings(max_examples=20, deadline=None)
def test_law_2_rows_of_any_lengths_learn_together_as_each_alone(rows: list[tuple[int, bool]]) -> None:
    """Some of them hold a level that sessions share, and what they hold of it stays as it is."""
    model = named_model("initial")
    shared = {name: value + 0.01 for name, value in initial_shared(model).items() if value.is_floating_point()}
    lessons = []
    for number, (length, under_generation) in enumerate(rows):
        tokens = random_tokens(model, 1, length, number)
        memory = with_shared(initial(model), shared) if under_generation else initial(model)
        with torch.no_grad():
            _, after = model(tokens, memory)
        lessons.append(RowLesson(memory, after, tokens[0].tolist(), [0.0, *[1.0] * (length - 1)]))
    for lesson, (memory, moved) in zip(lessons, learn_rows(model, CMS_FAST, lessons), strict=True):
        [(alone, moved_alone)] = learn_rows(model, CMS_FAST, [lesson])
        assert moved == pytest.approx(moved_alone, rel=1e-3, abs=1e-6)
        assert memory.keys() == alone.keys() == lesson.after.keys()
        assert memory_distance(memory, alone) <= 1e-4
        still = [name for name in memory if not name.startswith(f"{CMS_FAST}.")]
        assert same_bits({name: memory[name] for name in still}, {name: lesson.after[name] for name in still})


def test_a_lesson_in_which_nothing_counts_moves_nothing() -> None:
    model, fresh = named_model("initial"), initial(named_model("initial"))
    tokens = random_tokens(model, 1, 9)
    after, learned = learn(model, CMS_FAST, fresh, fresh, Lesson(tokens, torch.tensor([9]), torch.zeros(1, 9)))
    assert same_bits(after, fresh)
    assert learned.update_norm_B.tolist() == [0.0]


def test_a_rate_of_zero_moves_nothing() -> None:
    model, fresh = named_model("initial"), initial(named_model("initial"))
    after, learned = learn(model, CMS_FAST, fresh, fresh, _lesson(model, [9]), rate=0.0)
    assert same_bits(after, fresh)
    assert learned.update_norm_B.tolist() == [0.0]


def test_what_surprises_weighs_more() -> None:
    # Two lessons in one row: the gradient is that of the losses weighted by surprise over its mean, bounded.
    model, fresh = named_model("initial"), initial(named_model("initial"))
    lesson = _lesson(model, [12])
    after, _ = learn(model, CMS_FAST, fresh, fresh, lesson)
    names = [name for name in fresh if name.startswith("cms.fast.") and not name.endswith("updates")]
    inputs = {name: fresh[name].clone().requires_grad_() for name in names}
    logits, _ = model(lesson.tokens_BT, {**fresh, **inputs})
    losses = functional.cross_entropy(logits[0, :-1], lesson.tokens_BT[0, 1:], reduction="none")
    surprise = losses.detach().clamp_max(SURPRISE_CEILING_NATS)
    gradients = torch.autograd.grad((losses * surprise).sum() / surprise.sum(), list(inputs.values()))
    level = level_named(model, CMS_FAST)
    norm = float(torch.cat([g.flatten() for g in gradients]).norm())
    scale = level.learning_rate * min(1.0, level.max_update_norm / norm)
    for name, gradient in zip(names, gradients, strict=True):
        assert distance(after[name], -scale * gradient) <= 1e-4


def test_law_6_three_hundred_lessons_stay_within_the_bound() -> None:
    level = LevelConfig(CMS_FAST, 8, "session", learning_rate=5.0, max_update_norm=10.0, max_drift=2.0)
    model = tiny_model(num_layers=1, levels=(level,))
    memory, _ = _repeat(model, CMS_FAST, _lesson(model, [5]), times=300)
    norm = torch.cat([memory[f"cms.fast.0.{part}"].flatten() for part in ("w2", "w1")]).norm()
    assert float(norm) <= 2.0 * (1 + 1e-5)


@pytest.mark.parametrize("chain", ["sequential", "nested"])
def test_a_slower_level_s_step_restarts_a_faster_one_only_where_levels_are_nested(chain: str) -> None:
    model = tiny_model(chain=chain)
    fresh = initial(model, 2)
    taught, _ = learn(model, CMS_FAST, fresh, fresh, _lesson(model, [20, 20]))
    lesson = _lesson(model, [20, 20])
    # Only the first row has something to learn.
    lesson.counts_BT[1] = 0
    after, _ = learn(model, CMS_MEDIUM, taught, taught, lesson)
    kept = [torch.equal(after["cms.fast.1.w1"][row], taught["cms.fast.1.w1"][row]) for row in range(2)]
    assert kept == [chain == "sequential", True]
    assert bool(after["cms.fast.1.w1"][0].any()) == (chain == "sequential")
    assert after["cms.fast.updates"].tolist() == [1, 1]
    assert bool(after["cms.medium.1.w1"][0].any())


@pytest.mark.parametrize("scope", ["tenant", "training"])
def test_a_level_that_the_memory_does_not_hold_cannot_be_taught(scope: str) -> None:
    model = tiny_model(levels=(LevelConfig("cms.fixed", 8, scope, 0.5),))
    with pytest.raises(InvalidRequest, match=rf"does not hold 'cms\.fixed' \({scope}\)"):
        learn(model, "cms.fixed", initial(model), initial(model), _lesson(model, [9]))


def test_an_unknown_level_is_named_in_the_error() -> None:
    with pytest.raises(InvalidRequest, match=r"cms\.nowhere"):
        level_named(named_model("initial"), "cms.nowhere")
