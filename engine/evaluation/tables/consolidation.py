"""The table of consolidation: what a tenant's sessions learn from each other's, round after round, and keep.

Knows flags, settings and methods; what is told and asked is in `evaluation/rounds.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tqdm import tqdm

from engine.consolidation.policy import GenerationPolicy
from engine.errors import InvalidRequest
from engine.evaluation.rounds import Course, RoundsPlan, play
from engine.evaluation.study import Results, Run, by_model
from engine.evaluation.telling import SOURCES
from engine.model.weights import bundled_checkpoint, checkpoint_digest, load_checkpoint

NAME = "consolidation"
TITLE = "Consolidation into generations"
TEXT = """In every round, sessions are told new facts, their tenant is consolidated, and fresh sessions are asked about
this and every earlier round; the value, never in training, must be in the reply. *In session*: named by the sessions
that were told, at once: more than that cannot be taken up. *Before*: by fresh sessions before the round's
consolidation. *Uptake*: right after it. *Kept*: facts of earlier rounds, at the end; *retention*: that over their
uptake. *Apart*: facts of sessions that do not contribute. Perplexity is on the gate's fixed text.

*Ours*: dreams, rehearsal, calm rows and the gate. *Dreams only*: neither rehearsal nor calm rows, no gate. *EWC*: the
same, with a spring on every weight that mattered to earlier generations' dreams and to calm rows. *Replay*: the turns
themselves in place of dreams. *Fine-tuning*: the turns alone, no gate. All make as many steps; what the gate refuses is
not tried again without those who spoiled it, as a server's worker would."""
NO_GATE = {"least_uptake": 0.0, "least_retention": 0.0, "least_calm": 0.0, "most_perplexity": 1e6}
# A refused candidate stays refused: no search for whose fault it was.
ONE_TRY: dict[str, float | str] = {"most_attempts": 1}
METHODS: dict[str, dict[str, float | str] | None] = {
    "nothing": None,
    "fine-tuning": {"material": "turns", "dream_share": 1.0, "rehearsal_share": 0.0, **NO_GATE},
    "replay": {"material": "turns", **NO_GATE},
    "ewc": {"dream_share": 1.0, "rehearsal_share": 0.0, "elastic_strength": 0.3, **NO_GATE},
    "dreams only": {"dream_share": 1.0, "rehearsal_share": 0.0, **NO_GATE},
    "ours": {},
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """The table's own flags; what the model is, `--checkpoint` says, not `--models`."""
    plan = RoundsPlan()
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="FOLDER", help="default: the bundled one")
    add("--methods", type=lambda text: tuple(text.split(",")), default=tuple(METHODS), metavar="NAMES", help=_names())
    add("--rounds", type=int, default=plan.num_rounds, metavar="N", help=f"default {plan.num_rounds}")
    add("--sessions", type=int, default=plan.num_sessions, metavar="N", help=f"a round (default {plan.num_sessions})")
    usual = f"a session (default {plan.facts_per_session})"
    add("--facts", type=int, default=plan.facts_per_session, metavar="N", help=usual)
    add("--relations", choices=SOURCES, default=plan.relations, help=f"of facts (default {plan.relations})")


def measure(given: argparse.Namespace, results: Results) -> list[Run]:
    """Runs what is missing; returns the runs that count.

    Raises:
        InvalidRequest: no such method, or a number that is none.
    """
    for method in given.methods:
        if method not in METHODS:
            raise InvalidRequest(f"'{method}' is none of {', '.join(METHODS)}", param="methods")
    if min(given.rounds, given.sessions, given.facts) < 1:
        raise InvalidRequest("rounds, sessions and facts are at least 1", param="rounds")
    plan = RoundsPlan(given.rounds, given.sessions, given.facts, given.relations)
    model, tokenizer = load_checkpoint(given.checkpoint)
    model.requires_grad_(False)
    bar = tqdm(total=len(given.methods) * given.seeds * plan.num_rounds, unit="round", desc=NAME)
    runs = []
    for method in given.methods:
        policy = _policy(method)
        settings: dict[str, float | int | str] = {
            "checkpoint": checkpoint_digest(given.checkpoint or bundled_checkpoint()),
            **asdict(plan),
            "policy": repr(policy),
        }
        for seed in range(given.seeds):
            run = results.find(method, seed, settings)
            if run is None:
                begun = time.monotonic()
                course = asyncio.run(play(model, tokenizer, plan, policy, seed, bar.update))
                notes = {"seconds": round(time.monotonic() - begun, 1), "perplexity": course.perplexity}
                refused = [one for one in course.consolidations if one.status == "rejected"]
                for one in refused:
                    bar.write(f"{method}, seed {seed}: {one.reason}")
                notes["rejected"] = len(refused)
                run = results.add(Run(NAME, method, seed, settings, _values(course), notes))
            else:
                bar.update(plan.num_rounds)
            runs.append(run)
    bar.close()
    return runs


def remarks(runs: Sequence[Run]) -> str:
    """What the shares leave open: perplexity, and candidates that the gate refused."""
    lines = []
    for method, own in by_model(runs):
        ratio = sum(run.notes["perplexity"] for run in own) / len(own)
        refused = sum(int(run.notes["rejected"]) for run in own)
        lines.append(f"- {method}: perplexity {ratio:.3f} times that of before; {refused} candidates refused.")
    return "\n".join(lines)


def _policy(method: str) -> GenerationPolicy | None:
    changes = METHODS[method]
    return None if changes is None else replace(GenerationPolicy(), **ONE_TRY, **changes)  # type: ignore[arg-type]


def _values(course: Course) -> dict[str, float]:
    return {
        "in session": sum(course.in_session) / len(course.in_session),
        "before": sum(course.before) / len(course.before),
        "uptake": course.uptake,
        "kept": course.kept,
        "retention": course.retention,
        "apart": course.apart,
    }


def _names() -> str:
    return f"by commas (default {','.join(METHODS)})"
