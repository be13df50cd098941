"""Speeds are measured with the settings they are called by, and compared round by round."""

from __future__ import annotations

import itertools

import pytest
import torch

from engine.training import throughput
from engine.training.dialogue import Stage
from engine.training.throughput import KeptBytes, Setting, measure, settings_of, table
from tests.tiny import tiny_config

STAGE = Stage(num_tokens=160, num_rows=2, most_facts=2, talk=0.0)
EAGER = tuple(setting for setting in settings_of(1) if not setting.compiled)


def test_every_setting_is_measured_as_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    asked: list[int] = []
    # Several threads are asked for and not taken: on a busy machine they would take minutes.
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    speeds = measure(tiny_config(), STAGE, (*EAGER, Setting("seven", threads=7)), rounds=2)
    assert asked == [*[1] * len(EAGER), 7] * 3 + [threads]
    assert all(speed.tokens_per_s > 0 and speed.ratio > 0 for speed in speeds)
    assert speeds[0].ratio == 1.0
    kept = {speed.setting.name: speed.kept_bytes for speed in speeds}
    assert kept["1 thread"] == kept["seven"] > 1.5 * kept["checkpointing"]
    lines = list(table(speeds))
    assert len(lines) == len(EAGER) + 2
    assert all(line.startswith(speed.setting.name) for line, speed in zip(lines[1:], speeds, strict=True))


def test_ratios_are_of_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine that becomes ten times slower in the middle.
    times = iter([1.0, 0.5, 10.0, 5.0, 11.0, 5.5])
    monkeypatch.setattr(throughput._Contestant, "step_s", lambda self: next(times))
    monkeypatch.setattr(throughput._Contestant, "warm_up", lambda self: 0)
    speeds = measure(tiny_config(), STAGE, (Setting("slow"), Setting("fast")), rounds=3)
    assert [speed.ratio for speed in speeds] == [1.0, 2.0]
    assert speeds[1].tokens_per_s == 320 / 5.0


def test_the_settings_cover_every_flag_alone_and_with_compiling() -> None:
    for flag, other in {"precision": "bfloat16", "checkpointing": True, "threads": 2}.items():
        assert {s.compiled for s in settings_of(2) if getattr(s, flag) == other} == {False, True}
    for one, two in itertools.combinations(settings_of(2), 2):
        assert one.name != two.name
    assert {setting.threads for setting in settings_of(1)} == {1}
    assert len(settings_of(1)) == len(settings_of(2)) - 2


def test_kept_bytes_are_of_what_autograd_keeps() -> None:
    layer = torch.nn.Linear(4, 4, bias=False)
    x = torch.ones(10, 4)
    with KeptBytes(layer) as kept:
        y = layer(x).square()
    y.sum().backward()
    # The input and what is squared, 160 bytes each; the weight is there anyway.
    assert kept.total == 320
