"""The files under deploy/ and the Dockerfile, checked as far as that goes without running a container.

What can be known statically: they parse, they agree with each other, and every name in them (a port, a
secret, a metric, a setting) is one that the other side really has.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.metrics import Metrics
from server.settings import OPTIONS, ServerSettings

REPOSITORY = Path(__file__).parents[1]
DEPLOY = REPOSITORY / "deploy"
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text("utf-8")


def _load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text("utf-8"))


COMPOSE = _load("compose.yaml")
PROMETHEUS = _load("prometheus.yml")
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
REPLICAS = ["server-2", "server-3"]
OURS = [name for name, service in COMPOSE["services"].items() if service["image"] == "hope-server"]


def _tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a development tool, which lies beside the interpreter."""
    program = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    assert program is not None, f"{name} is missing: install the extra 'dev'"
    return subprocess.run([program, *arguments], capture_output=True, text=True, cwd=REPOSITORY, check=False)


def _exported_names() -> set[str]:
    """Every series name that a process of ours publishes."""
    names = set()
    for family in Metrics().registry.collect():
        endings = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}.get(family.type, ("",))
        names |= {family.name + ending for ending in endings}
    return names


def test_compose_follows_the_specification() -> None:
    schema = ("--builtin-schema", "vendor.compose-spec")
    checked = _tool("check-jsonschema", *schema, "--output-format", "json", str(DEPLOY / "compose.yaml"))
    assert checked.returncode == 0, json.loads(checked.stdout)


def test_compose_runs_four_services_and_with_a_profile_three_servers_behind_nginx() -> None:
    optional = {name for name, service in COMPOSE["services"].items() if service.get("profiles") == ["replicas"]}
    assert optional == {"server-2", "server-3", "nginx"}
    assert set(COMPOSE["services"]) - optional == {"server", "worker", "redis", "prometheus"}
    assert ["server", *REPLICAS, "worker"] == OURS


def test_nginx_knows_every_server_and_lets_through_what_they_take() -> None:
    nginx = (DEPLOY / "nginx.conf").read_text("utf-8")
    assert re.findall(r"server (\S+):8000 ", nginx) == ["server", *REPLICAS]
    (port,) = re.findall(r"listen (\d+);", nginx)
    assert COMPOSE["services"]["nginx"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    (largest,) = re.findall(r"client_max_body_size (\d+)m;", nginx)
    assert int(largest) * 2**20 == ServerSettings().max_import_bytes


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed; on Debian: apt-get install nginx-light")
def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    text = (DEPLOY / "nginx.conf").read_text("utf-8").replace("/tmp/", f"{tmp_path}/")
    # Names of containers mean nothing here.
    (tmp_path / "nginx.conf").write_text(re.sub(r"server \S+:8000 ", "server 127.0.0.1:8000 ", text))
    tested = _tool(str(NGINX), "-t", "-c", str(tmp_path / "nginx.conf"))
    assert tested.returncode == 0, tested.stderr


def test_every_secret_and_volume_is_declared_and_used() -> None:
    services = COMPOSE["services"].values()
    secrets = {secret for service in services for secret in service.get("secrets", [])}
    mounts = {mount.split(":")[0] for service in services for mount in service.get("volumes", [])}
    assert secrets == set(COMPOSE["secrets"])
    assert {mount for mount in mounts if not mount.startswith(".")} == set(COMPOSE["volumes"])
    assert all((DEPLOY / mount).is_file() for mount in mounts if mount.startswith("."))


@pytest.mark.parametrize("name", OURS)
def test_every_setting_of_compose_exists_and_can_be_read(name: str) -> None:
    options = {option.variable: option for option in OPTIONS}
    environment = dict(COMPOSE["services"][name]["environment"])
    keys_file = environment.pop("HOPE_API_KEYS_FILE")
    assert keys_file in {f"/run/secrets/{secret}" for secret in COMPOSE["services"][name]["secrets"]}
    for variable, text in environment.items():
        assert isinstance(text, str), f"{variable} must be quoted: YAML reads {text!r} as something else"
        options[variable].read(text)


@pytest.mark.parametrize("name", OURS)
def test_a_container_is_granted_longer_than_its_turns(name: str) -> None:
    service = COMPOSE["services"][name]
    assert float(service["stop_grace_period"].removesuffix("s")) > float(service["environment"]["HOPE_DRAIN_TIMEOUT_S"])


def test_prometheus_scrapes_every_process_on_its_metrics_port() -> None:
    jobs = PROMETHEUS["scrape_configs"]
    targets = {target for job in jobs for group in job["static_configs"] for target in group["targets"]}
    looked_up = [group for job in jobs for group in job.get("dns_sd_configs", [])]
    targets |= {f"{name}:{group['port']}" for group in looked_up for name in group["names"]}
    ports = {name: COMPOSE["services"][name]["environment"]["HOPE_METRICS_PORT"] for name in OURS}
    assert targets == {f"{name}:{port}" for name, port in ports.items()}
    assert {name: COMPOSE["services"][name]["expose"] for name in OURS} == {n: [p] for n, p in ports.items()}


def test_prometheus_may_read_the_key_it_sends() -> None:
    mounted = {f"/run/secrets/{secret}" for secret in COMPOSE["services"]["prometheus"]["secrets"]}
    assert {job["authorization"]["credentials_file"] for job in PROMETHEUS["scrape_configs"]} <= mounted


def test_redis_forgets_nothing() -> None:
    command = COMPOSE["services"]["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert COMPOSE["services"]["redis"]["healthcheck"]["test"] == ["CMD", "redis-cli", "ping"]
    assert "ports" not in COMPOSE["services"]["redis"], "it has no password: only the containers may reach it"


def test_nothing_is_published_beyond_this_machine() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_metric_of_the_alerts_exists() -> None:
    rules = [rule for group in _load("alerts.yml")["groups"] for rule in group["rules"]]
    named = {name for rule in rules for name in re.findall(r"\bhope_\w+", rule["expr"])}
    assert len(named) >= 5
    assert named - _exported_names() == set()


def test_the_bucket_that_counts_updates_of_nothing_exists() -> None:
    metrics = Metrics()
    metrics.memory_update("cms.fast", "applied", 0.0)
    bounds = set(re.findall(r'le="([^"]+)"', (DEPLOY / "alerts.yml").read_text("utf-8")))
    assert bounds
    published = metrics.render().decode()
    for bound in bounds:
        assert f'hope_memory_update_norm_bucket{{le="{bound}",level="cms.fast"}} 1.0' in published


def test_every_alert_says_what_is_wrong_and_how_bad_it_is() -> None:
    for rule in (rule for group in _load("alerts.yml")["groups"] for rule in group["rules"]):
        assert rule["labels"]["severity"] in ("warning", "critical"), rule["alert"]
        assert rule["annotations"]["summary"], rule["alert"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, part of Prometheus, is not installed")
def test_the_alerts_ring_when_they_should() -> None:
    tested = _tool("promtool", "test", "rules", str(DEPLOY / "alerts_test.yml"))
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_hadolint_finds_nothing() -> None:
    linted = _tool("hadolint", "--no-color", "Dockerfile")
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_the_image_runs_as_a_fixed_user_that_is_not_root() -> None:
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", final, re.MULTILINE)
    assert "--owner=10001" in final


def test_the_image_starts_the_program_itself_and_asks_it_whether_it_lives() -> None:
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    for instruction in ("ENTRYPOINT", "CMD"):
        argument = re.search(rf"^{instruction} (.+)$", final, re.MULTILINE)
        assert argument is not None
        assert isinstance(json.loads(argument[1]), list), "exec form: a shell would swallow SIGTERM"
    check = re.search(r"^HEALTHCHECK .*?CMD (\[.+?\])$", final, re.MULTILINE | re.DOTALL)
    assert check is not None
    program, flag, script = json.loads(check[1])
    assert (program, flag) == ("python3", "-c")
    compile(script, "HEALTHCHECK", "exec")
    assert "/livez" in script


def test_the_image_installs_under_the_constraints() -> None:
    installs = re.findall(r"pip install[^&]*", DOCKERFILE)
    assert installs
    assert all("--constraint constraints.txt" in install for install in installs)


def test_the_build_sees_all_that_the_dockerfile_copies() -> None:
    sent = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text("utf-8").split() if line[0] == "!"}
    copies = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    assert {source for copy in copies for source in copy.split()[:-1]} == sent
    assert all((REPOSITORY / source).exists() for source in sent)


def test_the_image_holds_every_package() -> None:
    packages = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"][
        "find"
    ]
    folders = {where.split("/")[0] for where in packages["where"] if where != "."} | {"engine", "server"}
    copied = set(re.findall(r"^COPY (\w+) \1$", DOCKERFILE, re.MULTILINE))
    let_in = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text("utf-8").splitlines() if line[:1] == "!"}
    assert copied == folders
    assert folders <= let_in
