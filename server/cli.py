"""The `hope` command: reads flags, hands over to the part that does the work, says plainly what went wrong.

Nothing heavy is imported before it is known to be needed, so `--help` answers at once.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.settings import Settings

DESCRIPTION = """\
A chat server whose memory is in the weights. Every session owns fast weights that change with
each turn and are saved with it; no history is ever read again."""

EPILOG = """\
to begin:
  hope serve                  then, in another terminal:
  hope chat                   tell it things about yourself, leave, come back, ask

`hope COMMAND --help` explains each."""

SERVE = """\
Serve sessions over HTTP and websocket, with a worker beside it that consolidates them.

With no Redis named, it starts one of its own on a private socket and keeps the data in
--data-dir. Every setting can be given as a flag, as a variable HOPE_NAME, or in a TOML file with
the tables [server], [engine] and [store]; flags beat variables, variables beat the file.

examples:
  hope serve
  hope serve --port 8001 --data-dir /srv/hope
  HOPE_REDIS_URL=redis://localhost:6379/0 hope serve
  HOPE_API_KEYS=some-secret:acme:user,other-secret:acme:operator hope serve --host 0.0.0.0

Keys are written key:tenant:role (roles: user, operator, metrics); sha256=<hex digest> in place of
a key keeps the key itself out of the file. SIGTERM finishes the running turns and exits 0; a
second one exits at once."""

WORKER = """\
Consolidate sessions: fold what they were told into slower weights, by dreams of it, under a lease; and make
generations of what contributing sessions were told.

`hope serve` starts one by itself; run more beside servers that share a Redis. It can be killed at any point:
nothing is half-published, and the work is taken up again.

example:
  HOPE_REDIS_URL=redis://localhost:6379/0 hope worker"""

RELEARN = """\
Have the checkpoint read every session again whose memory is of another one, from its transcript.

To be run after a change of the checkpoint, with its settings: until then such sessions answer 409. Each session gets
one new version and goes back into the worker's line; sessions that are done are passed over, so it can be stopped and
begun again. Where a tenant's generation is of another model, generation 0 becomes active and a new one is asked for.
Servers may run meanwhile; workers of the old checkpoint may not. A store that `hope serve` started by itself is
locked while that runs: stop it first.

examples:
  hope relearn --dry-run
  HOPE_REDIS_URL=redis://localhost:6379/0 hope relearn --checkpoint /srv/new"""

# Commands whose flags are explained by the part that does the work.
HANDED_ON = {
    "chat": "talk to a server from the terminal",
    "generations": "make, list and switch what a tenant's sessions share",
    "train": "train a model on dialogues and text",
    "eval": "measure what the model remembers",
    "bench": "measure speed and size on this machine",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if argv and argv[0] in HANDED_ON:
        return _hand_on(argv[0], argv[1:])
    given = _parser().parse_args(argv)
    from engine import HopeError
    from server.settings import SettingsError, load_settings

    try:
        settings = load_settings(vars(given), os.environ)
        logging.basicConfig(
            level=settings.server.log_level.upper(),
            format="%(asctime)s %(levelname)s %(name)s %(message)s",
            stream=sys.stderr,
        )
        command: Callable[[argparse.Namespace, Settings], int] = given.command
        return command(given, settings)
    except (SettingsError, HopeError) as error:
        print(f"hope: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _serve(given: argparse.Namespace, settings: Settings) -> int:
    from uvicorn.loops.auto import auto_loop_factory

    from server.serve import serve

    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:  # uvloop's where there is one
        return runner.run(serve(settings))


def _work(given: argparse.Namespace, settings: Settings) -> int:
    from server.serve import work

    os.nice(given.nice)
    return asyncio.run(work(settings, stop_with_parent=given.stop_with_parent))


def _relearn(given: argparse.Namespace, settings: Settings) -> int:
    from engine import run_relearning
    from server.metrics import Metrics

    done = asyncio.run(run_relearning(settings.engine, settings.store, Metrics(), dry_run=given.dry_run))
    print(
        f"{done.sessions} sessions looked at; {done.relearned} {'to be ' if given.dry_run else ''}relearned: "
        f"{done.turns} turns, {done.tokens} tokens; {done.generations} generations of another model"
    )
    if done.incomplete:
        print(
            f"{done.incomplete} of the turns had also read system messages or a history from elsewhere, which no "
            "transcript holds: the memories are without those"
        )
    if done.failed:
        print(f"{done.failed} sessions were left as they were; run it again, or see what was said of each")
    return 1 if done.failed else 0


def _hand_on(command: str, argv: list[str]) -> int:
    if command == "chat":
        from hope_client.chat import main as chat

        return chat(argv)
    if command == "generations":
        from hope_client.generations import main as generations

        return generations(argv)
    import engine

    run = {"train": engine.run_training, "eval": engine.run_evaluation, "bench": engine.run_bench}[command]
    try:
        return run(argv)
    except engine.HopeError as error:
        print(f"hope {command}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "hope", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    serve = _command(commands, "serve", "serve sessions over HTTP and websocket", SERVE)
    serve.set_defaults(command=_serve)
    _add_settings(serve, ("server", "engine", "store"))
    worker = _command(commands, "worker", "consolidate sessions in the background", WORKER)
    worker.set_defaults(command=_work)
    worker.add_argument("--nice", type=int, default=0, metavar="N", help="lower this process's priority by N")
    worker.add_argument("--stop-with-parent", action="store_true", help="stop when standard input closes")
    _add_settings(worker, ("engine", "store"))
    relearn = _command(commands, "relearn", "read sessions of another checkpoint again", RELEARN)
    relearn.set_defaults(command=_relearn)
    relearn.add_argument("--dry-run", action="store_true", help="only count what is to be done")
    _add_settings(relearn, ("engine", "store"), of_server=("log_level",))
    for name, text in HANDED_ON.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, description: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def _add_settings(
    parser: argparse.ArgumentParser,
    sections: tuple[str, ...],
    of_server: tuple[str, ...] = ("host", "insecure", "metrics_port", "log_level"),
) -> None:
    from server.settings import OPTIONS, Settings

    parser.add_argument("--config", metavar="FILE", help="TOML file of settings [HOPE_CONFIG]")
    keys_help = "file of API keys, one a line [HOPE_API_KEYS_FILE, or the keys themselves in HOPE_API_KEYS]"
    parser.add_argument("--api-keys-file", metavar="FILE", help=keys_help)
    for section in sections:
        group = parser.add_argument_group(f"[{section}]")
        defaults = getattr(Settings(), section)
        for option in (option for option in OPTIONS if option.section == section and not option.secret):
            _add_setting(group, option.flag, option.variable, option.help, getattr(defaults, option.name))
    if "server" not in sections:
        group = parser.add_argument_group("[server]")
        for option in OPTIONS:
            if option.name in of_server:
                default = getattr(Settings().server, option.name)
                _add_setting(group, option.flag, option.variable, option.help, default)


def _add_setting(group: argparse._ArgumentGroup, flag: str, variable: str, text: str, default: object) -> None:
    shown = "" if default is None else f", default {default}"
    help_text = f"{text} [{variable}{shown}]"
    if isinstance(default, bool):
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=help_text)
    else:
        group.add_argument(flag, metavar=flag.rsplit("-", 1)[-1].upper(), help=help_text)


if __name__ == "__main__":
    sys.exit(main())
