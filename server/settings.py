"""Settings of the whole program, read once at the edge: flags over HOPE_* variables over one TOML file.

Every setting is one row of OPTIONS, which gives it its flag, its variable, its TOML key and its help.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine import EngineSettings, StoreSettings
from server.auth import ApiKey, is_loopback, parse_keys
from server.readers import (
    amount,
    folder_url,
    log_level,
    optional,
    origins,
    redis_url,
    seconds,
    some_text,
    switch,
    whole,
)


class SettingsError(ValueError):
    """A setting that cannot be used; the message names where it came from and what it should be."""


@dataclass(frozen=True)
class ServerSettings:
    """How the server listens and whom it answers.

    Attributes:
        host: address to listen on; without keys only a loopback address is allowed.
        port: port to listen on; 0 takes a free one.
        insecure: True allows any address without keys.
        api_keys: who may call; none means one tenant, `default`.
        cors_origins: origins of web pages that may call from a browser (CORS); their own origin always may.
        metrics_port: port of its own for /metrics; None serves it beside the other routes.
        max_body_bytes: longest request body and websocket frame.
        max_import_bytes: longest file of an import.
        outbox_events: events that may wait for a slow reader before it is cut off.
        send_timeout_s: seconds one write to a slow reader may take.
        worker: whether `hope serve` starts a worker of its own.
        worker_metrics_port: port of that worker's metrics; None serves none.
        log_level: least important level that is logged.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    insecure: bool = False
    api_keys: tuple[ApiKey, ...] = field(default=(), repr=False)
    cors_origins: tuple[str, ...] = ()
    metrics_port: int | None = None
    max_body_bytes: int = 2**20
    max_import_bytes: int = 2**26
    outbox_events: int = 1024
    send_timeout_s: float = 10.0
    worker: bool = True
    worker_metrics_port: int | None = None
    log_level: str = "info"


@dataclass(frozen=True)
class Settings:
    """The server's, the engine's and the store's settings."""

    server: ServerSettings = field(default_factory=ServerSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    store: StoreSettings = field(default_factory=StoreSettings)


@dataclass(frozen=True)
class Option:
    """One setting: where it belongs, how its text is read, what it is for.

    Attributes:
        section: `server`, `engine` or `store`; also the table of the TOML file.
        name: of the field; the flag is `--name-with-dashes`, the variable HOPE_NAME.
        read: turns text into the value, or raises ValueError saying what it should have been.
        help: one line for `--help`.
        secret: True keeps it off the command line, where other users of the machine could read it.
    """

    section: str
    name: str
    read: Callable[[str], Any]
    help: str
    secret: bool = False

    @property
    def flag(self) -> str:
        """As written on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """As written in the environment."""
        return "HOPE_" + self.name.upper()


_PORT = whole(0, 65535)

OPTIONS = (
    Option("server", "host", some_text, "address to listen on"),
    Option("server", "port", _PORT, "port to listen on; 0 takes a free one"),
    Option("server", "insecure", switch, "listen on any address even without API keys"),
    Option("server", "api_keys", parse_keys, "key:tenant:role, separated by commas", secret=True),
    Option("server", "cors_origins", origins, "web pages that may call from a browser, by their origins"),
    Option("server", "metrics_port", optional(_PORT), "serve /metrics on a port of its own"),
    Option("server", "max_body_bytes", whole(1024), "longest request body and websocket frame"),
    Option("server", "max_import_bytes", whole(1024), "longest file of an import"),
    Option("server", "outbox_events", whole(1), "events that may wait for a slow reader"),
    Option("server", "send_timeout_s", seconds, "seconds one write to a slow reader may take"),
    Option("server", "worker", switch, "start a worker beside the server"),
    Option("server", "worker_metrics_port", optional(_PORT), "port of that worker's /metrics"),
    Option("server", "log_level", log_level, "debug, info, warning or error"),
    Option("engine", "checkpoint", optional(Path), "folder of the checkpoint; none: the one that ships"),
    Option("engine", "max_batch_rows", whole(1), "sessions that run together in one step"),
    Option("engine", "max_queue", whole(1), "turns that may wait; the next is refused"),
    Option("engine", "max_message_tokens", whole(1), "longest message of one turn, in tokens"),
    Option("engine", "max_new_tokens", whole(1), "upper bound of a turn's max_tokens"),
    Option("engine", "resident_bytes", whole(0), "budget of session memories kept in this process"),
    Option("engine", "torch_threads", whole(1), "threads of one tensor operation"),
    Option("engine", "drain_timeout_s", seconds, "seconds running turns get when the server stops"),
    Option("engine", "heartbeat_timeout_s", seconds, "silence after which the engine counts as dead"),
    Option("engine", "learn_every_tokens", whole(1), "clock of cms.fast inside a long message"),
    Option("engine", "turns_per_minute", whole(0), "turns a tenant may begin in a minute; 0: no limit"),
    Option("engine", "tokens_per_minute", whole(0), "tokens a tenant may read and be told in a minute; 0: no limit"),
    Option("engine", "learned_tokens_per_minute", whole(0), "tokens a tenant's sessions may learn from in a minute"),
    Option("engine", "learned_tokens_per_session_hour", whole(0), "tokens a session may learn from in an hour"),
    Option("engine", "surprise_per_consolidation", amount, "nats of surprise after which the worker consolidates"),
    Option("engine", "turns_per_consolidation", whole(1), "turns after which the worker consolidates"),
    Option("engine", "idle_consolidation_s", seconds, "quiet after which the worker consolidates"),
    Option(
        "engine",
        "generation_every_s",
        whole(0),
        "seconds until contributed turns make a generation; 0: on call",
    ),
    Option("engine", "suite", optional(Path), "TOML file of your own probes and texts for the gate"),
    Option(
        "store",
        "redis_url",
        optional(redis_url),
        "Redis, Valkey, cluster or Sentinels; none: an embedded one",
    ),
    Option("store", "data_dir", Path, "folder of the embedded store's files"),
    Option("store", "lease_ttl_s", seconds, "seconds a session's lease lives without renewal"),
    Option("store", "idempotency_ttl_s", whole(1), "seconds an idempotency key is remembered"),
    Option("store", "keep_versions", whole(1), "memory versions kept of each session"),
    Option(
        "store",
        "generations_url",
        optional(folder_url),
        "folder or object store for generations; none: Redis",
    ),
    Option("store", "keep_days", whole(0), "days of which the last version each is kept too"),
    Option(
        "store",
        "store_key_file",
        optional(Path),
        "file of keys that seal memories in the store; none: unsealed",
    ),
    Option("store", "encrypt_memories", switch, "encrypt what is sealed, and not only sign it"),
    Option("store", "refuse_unsealed", switch, "serve no memory stored before there was a key"),
)


def load_settings(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """Compose the settings from what was given.

    Args:
        flags: values of the command line by option name; None where a flag was not given. `config` names the
            TOML file, as HOPE_CONFIG does; `api_keys_file` names a file of keys, as HOPE_API_KEYS_FILE does.
        environment: the process's variables.

    Raises:
        SettingsError: a value that cannot be used, an unknown TOML key, an address that needs keys.
    """
    settings = Settings()
    config = flags.get("config") or environment.get("HOPE_CONFIG")
    if config:
        for option, value in _read_toml(Path(config)):
            settings = _with(settings, option, _as_text(value), f"{config}: [{option.section}] {option.name}")
    settings = _with_keys_file(settings, environment.get("HOPE_API_KEYS_FILE"))
    for option in OPTIONS:
        if option.variable in environment:
            settings = _with(settings, option, environment[option.variable], option.variable)
    for option in OPTIONS:
        if flags.get(option.name) is not None:
            settings = _with(settings, option, _as_text(flags[option.name]), option.flag)
    return _with_keys_file(settings, flags.get("api_keys_file"))


def check_exposure(server: ServerSettings) -> None:
    """Refuse to serve strangers: an address that others can reach needs keys, or `--insecure`."""
    if not server.api_keys and not server.insecure and not is_loopback(server.host):
        raise SettingsError(
            f"{server.host} can be reached by others, and no API keys are set. Set HOPE_API_KEYS (or "
            "--api-keys-file), listen on 127.0.0.1, or say --insecure if that is what you want."
        )


def as_environment(settings: Settings) -> dict[str, str]:
    """The engine's and the store's settings as variables, for a child process that must agree."""
    variables = {}
    for option in OPTIONS:
        if option.section != "server":
            value = getattr(getattr(settings, option.section), option.name)
            variables[option.variable] = "" if value is None else str(value)
    return variables


def _with(settings: Settings, option: Option, text: str, source: str) -> Settings:
    try:
        value = option.read(text)
    except ValueError as error:
        raise SettingsError(f"{source}: {error}") from None
    section = replace(getattr(settings, option.section), **{option.name: value})
    return replace(settings, **{option.section: section})


def _with_keys_file(settings: Settings, path: str | None) -> Settings:
    if not path:
        return settings
    option = next(option for option in OPTIONS if option.name == "api_keys")
    return _with(settings, option, _read_file(Path(path)), path)


def _read_toml(path: Path) -> list[tuple[Option, Any]]:
    try:
        tables = tomllib.loads(_read_file(path))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from None
    known = {(option.section, option.name): option for option in OPTIONS}
    found = []
    for section, table in tables.items():
        if section not in ("server", "engine", "store") or not isinstance(table, dict):
            raise SettingsError(f"{path}: '{section}' is not one of the tables [server], [engine], [store]")
        for name, value in table.items():
            if (section, name) not in known:
                raise SettingsError(f"{path}: [{section}] has no setting '{name}'")
            found.append((known[section, name], value))
    return found


def _read_file(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError(f"cannot read {path}: {reason}") from None


def _as_text(value: Any) -> str:
    """A flag's or TOML value as the text a variable would hold; a TOML list is joined with commas."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
