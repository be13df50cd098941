"""Settings: flags over variables over a file over defaults, and clear words for what cannot be used."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from engine import EngineSettings, StoreSettings
from server.settings import (
    OPTIONS,
    ServerSettings,
    Settings,
    SettingsError,
    as_environment,
    check_exposure,
    load_settings,
)


def test_nothing_given_means_the_defaults() -> None:
    assert load_settings({}, {}) == Settings()


def test_every_field_of_every_section_is_a_setting() -> None:
    sections = {"server": ServerSettings, "engine": EngineSettings, "store": StoreSettings}
    fields = {(name, field.name) for name, kind in sections.items() for field in dataclasses.fields(kind)}
    assert {(option.section, option.name) for option in OPTIONS} == fields


def test_flags_beat_variables_beat_the_file(tmp_path: Path) -> None:
    file = tmp_path / "hope.toml"
    file.write_text('[server]\nhost = "::1"\nport = 1\n[engine]\nmax_queue = 3\n[store]\ndata_dir = "there"\n')
    settings = load_settings({"config": str(file), "port": "3"}, {"HOPE_PORT": "2", "HOPE_MAX_QUEUE": "4"})
    assert (settings.server.port, settings.engine.max_queue) == (3, 4)
    assert (settings.server.host, settings.store.data_dir) == ("::1", Path("there"))


def test_the_file_may_be_named_by_a_variable(tmp_path: Path) -> None:
    file = tmp_path / "hope.toml"
    file.write_text("[server]\nworker = false\n")
    assert load_settings({}, {"HOPE_CONFIG": str(file)}).server.worker is False


def test_empty_variable_means_none_where_none_is_a_value() -> None:
    settings = load_settings({}, {"HOPE_METRICS_PORT": "", "HOPE_REDIS_URL": ""})
    assert (settings.server.metrics_port, settings.store.redis_url) == (None, None)


def test_keys_from_a_file_and_inline_keys_win_over_it(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("file-key:acme:operator\n")
    from_file = load_settings({}, {"HOPE_API_KEYS_FILE": str(file)}).server.api_keys
    assert [(key.tenant, key.role) for key in from_file] == [("acme", "operator")]
    both = load_settings({}, {"HOPE_API_KEYS_FILE": str(file), "HOPE_API_KEYS": "inline:other"})
    assert [key.tenant for key in both.server.api_keys] == ["other"]
    flag = load_settings({"api_keys_file": str(file)}, {"HOPE_API_KEYS": "inline:other"})
    assert [key.tenant for key in flag.server.api_keys] == ["acme"]


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("HOPE_PORT", "http", "HOPE_PORT: must be a whole number from 0 to 65535"),
        ("HOPE_PORT", "65536", "HOPE_PORT: must be a whole number from 0 to 65535"),
        ("HOPE_PORT", "", "HOPE_PORT: must be a whole number from 0 to 65535"),
        ("HOPE_MAX_QUEUE", "0", "HOPE_MAX_QUEUE: must be a whole number of at least 1"),
        ("HOPE_DRAIN_TIMEOUT_S", "-1", "HOPE_DRAIN_TIMEOUT_S: must be a number of seconds above 0"),
        ("HOPE_DRAIN_TIMEOUT_S", "soon", "HOPE_DRAIN_TIMEOUT_S: must be a number of seconds"),
        ("HOPE_DRAIN_TIMEOUT_S", "nan", "HOPE_DRAIN_TIMEOUT_S: must be a number of seconds above 0"),
        ("HOPE_WORKER", "maybe", "HOPE_WORKER: must be true or false"),
        (
            "HOPE_REDIS_URL",
            "redis+sentinel://:secret@watcher",
            "HOPE_REDIS_URL: name the service that the Sentinels watch over: redis+sentinel://host:26379/service",
        ),
        ("HOPE_HOST", "", "HOPE_HOST: may not be empty"),
        ("HOPE_LOG_LEVEL", "loud", "HOPE_LOG_LEVEL: must be debug, info, warning or error"),
    ],
)
def test_bad_value_is_named_with_what_it_should_be(variable: str, value: str, expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({}, {variable: value})
    assert str(caught.value) == expected


def test_bad_key_is_not_repeated() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({}, {"HOPE_API_KEYS": "s3cret:acme:king"})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[server]\nprot = 1\n", "[server] has no setting 'prot'"),
        ("[engine]\nport = 1\n", "[engine] has no setting 'port'"),
        ("[model]\nwidth = 1\n", "'model' is not one of the tables"),
        ("port = 1\n", "'port' is not one of the tables"),
        ("[server]\nport = true\n", "[server] port: must be a whole number"),
        ("[server\n", "is not valid TOML"),
    ],
)
def test_bad_file_is_refused_with_its_name(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "hope.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings({"config": str(file)}, {})
    assert expected in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("flag", ["config", "api_keys_file"])
def test_file_that_cannot_be_read_is_refused(tmp_path: Path, flag: str) -> None:
    with pytest.raises(SettingsError, match="cannot read"):
        load_settings({flag: str(tmp_path / "missing")}, {})


def test_address_that_others_reach_needs_keys_or_insecure() -> None:
    with pytest.raises(SettingsError, match="HOPE_API_KEYS"):
        check_exposure(ServerSettings(host="0.0.0.0"))
    check_exposure(ServerSettings(host="127.0.0.1"))
    check_exposure(ServerSettings(host="0.0.0.0", insecure=True))
    check_exposure(load_settings({}, {"HOPE_HOST": "0.0.0.0", "HOPE_API_KEYS": "key"}).server)


def test_a_child_reads_the_same_settings_from_its_environment(tmp_path: Path) -> None:
    given = {"max_queue": "7", "checkpoint": str(tmp_path), "lease_ttl_s": "2.5", "port": "9"}
    settings = load_settings(given, {})
    child = load_settings({}, as_environment(settings))
    assert (child.engine, child.store) == (settings.engine, settings.store)
    assert child.server == ServerSettings()
