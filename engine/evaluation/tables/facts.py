"""The table of facts that users tell: recall by the number of other turns since, with each level switched off.

Knows flags, settings and shares; what is told and asked is in `evaluation/facts.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from engine.consolidation.policy import SESSION_POLICY
from engine.errors import InvalidRequest
from engine.evaluation.contestants import num_parameters
from engine.evaluation.conversation import levels_of
from engine.evaluation.examples import Model
from engine.evaluation.facts import CHANGED, GAPS, UNKNOWN, Answer, FactsPlan, play
from engine.evaluation.study import Results, Run, by_model
from engine.evaluation.telling import SOURCES
from engine.model.weights import bundled_checkpoint, checkpoint_digest, load_contestant

NAME = "facts"
TITLE = "Facts told in a conversation"
TEXT = """Five facts a session, each with other talk behind it, asked for after so many more turns of other talk; the
value, never in training, must be in the reply. *Training*: wordings of training. *Open*: relations of words that
training never saw. *Everyday*, *paraphrases*: sentences as users write them, none of them in training, the latter asked
for in other words than they were told in. *Changed*: told again with another value; the new one must be said and the
old one not. *Unknown*: asked, 20 turns on, about what was never told; the share of replies that say so and name
nothing: the rest is false recall.

Facts, other talk and questions are those of `hope eval recall`. There the model speaks in every turn; here, so that a
thousand turns are affordable, replies to other talk are small talk's own and only read. *Without titans*: it starts
anew with every turn. *Without cms.fast*: no lesson at the end of a turn. *Without cms.medium*: no worker. The worker
takes in the first `--worker-turns` turns of a session, the facts among them."""
WITHOUT_GAPS = (1, 5, 20, 100)
# A script draws three times as many relations; the smallest source has 24 of them.
MOST_FACTS = 8
TOLD_NOT_KNOWN, CHANGED_OLD = "told, not known", "changed, old named"


def arguments(parser: argparse.ArgumentParser) -> None:
    """The table's own flags; what the model is, `--checkpoint` says, not `--models`."""
    plan = FactsPlan()
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="FOLDER", help="default: the bundled one; another's name stands in its rows")
    add("--sources", type=_words, default=plan.sources, metavar="NAMES", help=f"of {', '.join(SOURCES)}, by commas")
    add("--sessions", type=int, default=plan.num_sessions, metavar="N", help="sessions a source (default 10)")
    add("--facts", type=int, default=plan.facts_per_session, metavar="N", help="facts a session (default 5)")
    add("--gaps", type=_numbers, default=GAPS, metavar="TURNS", help=f"by commas (default {_text(GAPS)})")
    add("--without", type=_words, metavar="LEVELS", help="levels switched off in turn, by commas (default: every one)")
    usual = f"gaps with a level switched off (default {_text(WITHOUT_GAPS)})"
    add("--without-gaps", type=_numbers, default=WITHOUT_GAPS, metavar="TURNS", help=usual)
    usual = f"turns of a session that the worker takes in, 16 at a time (default {plan.worker_turns})"
    add("--worker-turns", type=int, default=plan.worker_turns, metavar="N", help=usual)
    add("--show", action="store_true", help="print the questions and replies of the runs that are made")


def measure(given: argparse.Namespace, results: Results) -> list[Run]:
    """Runs what is missing; returns the runs that count.

    Raises:
        InvalidRequest: no such source or level, gaps that do not rise, or no checkpoint.
    """
    plan = _plan(given, given.gaps)
    shorter = _plan(given, given.without_gaps)
    model, tokenizer = load_contestant(given.checkpoint)
    model.requires_grad_(False)
    digest = checkpoint_digest(given.checkpoint or bundled_checkpoint())
    variants = [(label, off, shorter if off else plan) for label, off in _variants(given, model)]
    bar = tqdm(total=given.seeds * sum(own.num_turns for _, _, own in variants), unit="turn", desc=NAME)
    runs = []
    for label, off, own in variants:
        settings: dict[str, float | int | str] = {"checkpoint": digest, **_settings(own)}
        if own.worker_turns:
            settings["worker"] = hashlib.sha256(repr(SESSION_POLICY).encode()).hexdigest()[:8]
        for seed in range(given.seeds):
            run = results.find(label, seed, settings)
            if run is None:
                begun = time.monotonic()
                answers = play(model, tokenizer, own, off, seed, bar.update)
                notes = {"parameters": float(num_parameters(model)), "seconds": round(time.monotonic() - begun, 1)}
                run = results.add(Run(NAME, label, seed, settings, _values(answers), notes | _notes(answers)))
                if given.show:
                    _show(label, answers)
            else:
                bar.update(own.num_turns)
            runs.append(run)
    bar.close()
    return runs


def remarks(runs: Sequence[Run]) -> str:
    """What the shares leave open: in which way replies were wrong."""
    lines = []
    for name, own in by_model(runs):
        not_known, old = (statistics.mean(run.notes[note] for run in own) for note in (TOLD_NOT_KNOWN, CHANGED_OLD))
        lines.append(
            f"- {name}: of told facts, {not_known:.1%} were said not to be known; "
            f"of changed ones, the old value was named for {old:.1%}."
        )
    return "\n".join(lines)


def _plan(given: argparse.Namespace, gaps: tuple[int, ...]) -> FactsPlan:
    for source in given.sources:
        if source not in SOURCES:
            raise InvalidRequest(f"'{source}' is none of {', '.join(SOURCES)}", param="sources")
    if not gaps or gaps[0] < 1 or list(gaps) != sorted(set(gaps)):
        raise InvalidRequest(f"gaps rise from 1 on, unlike {_text(gaps)}", param="gaps")
    if given.sessions < 1:
        raise InvalidRequest("there must be a session", param="sessions")
    if not 1 <= given.facts <= MOST_FACTS:
        raise InvalidRequest(f"a session tells from 1 to {MOST_FACTS} facts, not {given.facts}", param="facts")
    return FactsPlan(tuple(given.sources), given.sessions, given.facts, gaps, given.worker_turns)


def _variants(given: argparse.Namespace, model: Model) -> list[tuple[str, frozenset[str]]]:
    """Rows of the table: the model as it is, then without each level."""
    held = levels_of(model)
    absent = [level for level in given.without or () if level not in held]
    if absent:
        raise InvalidRequest(f"this model has no level '{absent[0]}' to switch off", param="without")
    whole = "all levels" if held else "as it is"
    rows = [(whole, frozenset[str]())]
    rows += [(f"without {level}", frozenset({level})) for level in (held if given.without is None else given.without)]
    prefix = "" if given.checkpoint is None else f"{given.checkpoint.resolve().name}, "
    return [(prefix + label, off) for label, off in rows]


def _settings(plan: FactsPlan) -> dict[str, float | int | str]:
    return {name: _text(value) if isinstance(value, tuple) else value for name, value in asdict(plan).items()}


def _values(answers: Sequence[Answer]) -> dict[str, float]:
    """The share of right answers by condition: told facts by source, then changed ones, then unknown ones."""
    conditions = dict.fromkeys(one.condition for one in answers)
    order = sorted(conditions, key=lambda name: (name == UNKNOWN, name.startswith(CHANGED), name.split()[0]))
    return {name: _share([one.right for one in answers if one.condition == name]) for name in order}


def _notes(answers: Sequence[Answer]) -> dict[str, float]:
    told = [one for one in answers if one.condition != UNKNOWN and one.old is None]
    replaced = [one for one in answers if one.old is not None]
    return {
        TOLD_NOT_KNOWN: _share([one.not_known for one in told]),
        CHANGED_OLD: _share([one.outdated for one in replaced]),
    }


def _share(marks: Sequence[bool]) -> float:
    return sum(marks) / len(marks)


def _show(label: str, answers: Sequence[Answer]) -> None:
    for one in answers:
        mark, asked = "+" if one.right else "-", one.asked
        print(f"{mark} {label}, {one.condition}: {asked.told}  |  {asked.question}  ->  {asked.reply}")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _text(values: Sequence[object]) -> str:
    return ",".join(map(str, values))
