"""`hope generations`: what a tenant's sessions share, made, looked at and switched from the terminal.

For a key of role `operator`. Knows only the wire.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from hope_client.blocking import HopeClient
from hope_client.contract import Consolidation
from hope_client.errors import HopeRequestError

DESCRIPTION = """\
What contributing sessions were told is folded into generations, which all sessions of the tenant share. A new one is
let in by a gate or refused with the reason; any that is kept can be made the active one again, at once for all."""

EPILOG = """\
examples:
  hope generations                          list them
  hope generations consolidate              make one now, and wait for it
  hope generations activate 3               go back to number 3; 0 is the checkpoint alone
  hope generations rebuild --without ID     a successor from before a session, deleted or not, was learned from
  hope generations quarantine               sessions that spoiled candidates, and are left out
  hope generations let-out ID               have such a session tried again

a server with API keys: set HOPE_API_KEY to an operator's."""

POLL_S = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 1 where a candidate was refused, 2 where the request was."""
    given = _parser().parse_args(arguments)
    try:
        with HopeClient(given.url, os.environ.get("HOPE_API_KEY")) as client:
            return _run(client, given)
    except HopeRequestError as error:
        print(f"hope generations: {error}", file=sys.stderr)
        return 2


def _run(client: HopeClient, given: argparse.Namespace) -> int:
    if given.action == "activate":
        client.activate_generation(given.generation)
    elif given.action in ("consolidate", "rebuild"):
        return _consolidate(client, getattr(given, "without", None))
    elif given.action == "quarantine":
        for aside in client.quarantine():
            excluded = ", excluded" if aside["excluded"] else ""
            print(f"{aside['session_id']}  {aside['times']} times{excluded}: {aside['reason']}")
        return 0
    elif given.action == "let-out":
        client.let_out(given.session)
        return 0
    for one in client.generations():
        active = "active" if one["active"] else ""
        print(f"{one['generation']:>6}  {active:<6}  {one['created_at'] or 'the checkpoint alone'}")
    return 0


def _consolidate(client: HopeClient, without: str | None) -> int:
    consolidation = client.consolidate(without=without)
    while consolidation["status"] == "running":
        time.sleep(POLL_S)
        consolidation = client.consolidation(consolidation["id"])
    for line in describe(consolidation):
        print(line)
    return 0 if consolidation["status"] in ("accepted", "empty") else 1


def describe(consolidation: Consolidation) -> list[str]:
    """A consolidation that has ended, in lines to print."""
    generation = consolidation["to_generation"]
    became = "" if generation is None else f": generation {generation}"
    sessions, turns = consolidation["num_sessions"], consolidation["num_turns"]
    lines = [f"{consolidation['status']}{became}, {turns} turns of {sessions} sessions"]
    if consolidation["reason"]:
        lines.append(consolidation["reason"])
    if consolidation["gate"]:
        lines.append(f"{'':12}{'before':>10}{'after':>10}{'limit':>10}")
    for name, check in consolidation["gate"].items():
        figures = "".join(f"{check[part]:>10.3g}" for part in ("before", "after", "limit"))
        lines.append(f"{name:<12}{figures}{'' if check['passed'] else '  refused'}")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "hope generations",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    url = os.environ.get("HOPE_URL", "http://127.0.0.1:8000")
    parser.add_argument("--url", default=url, help=f"where the server listens [HOPE_URL, default {url}]")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="the generations that are kept (the default)")
    actions.add_parser("consolidate", help="make one of what is new, and wait for it")
    activate = actions.add_parser("activate", help="make one the active one")
    activate.add_argument("generation", type=int, metavar="N", help="its number; 0 is the checkpoint alone")
    rebuild = actions.add_parser("rebuild", help="make one from before a session was learned from")
    rebuild.add_argument("--without", required=True, metavar="ID", help="the session, deleted or not")
    actions.add_parser("quarantine", help="list the sessions that spoiled candidates")
    let_out = actions.add_parser("let-out", help="have such a session tried again")
    let_out.add_argument("session", metavar="ID", help="the session")
    return parser
