"""What stands in deploy/ holds: settings and series that exist, files that are there, numbers that agree.

Validators of others are used where they are installed; `.ci/run` installs them all.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy import __version__
from proxy.cli.main import run as run_command
from proxy.config.settings import SETTINGS, load_settings
from proxy.telemetry.metrics import SERIES, Metrics

REPO = Path(__file__).parents[2]
DEPLOY = REPO / "deploy"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())
YAML = [path for path in FILES if path.suffix in (".yaml", ".yml")]
RULES = DEPLOY / "prometheus/rules/sameflight.yml"
RULE_TESTS = DEPLOY / "prometheus/tests/sameflight_test.yml"
BOARD = DEPLOY / "grafana/dashboards/sameflight.json"
COMPOSE = DEPLOY / "compose.yaml"
UNIT = DEPLOY / "systemd/sameflight@.service"
ENVIRONMENTS = {row.env for row in SETTINGS} | {row.env + "_FILE" for row in SETTINGS if row.secret}

# Prometheus's own, and what it adds to each series.
FOREIGN = {"up": (), "ALERTS": ("alertname", "alertstate")}
ADDED = {"job", "instance", "namespace", "pod"}
# A parent adds it to gauges.
ADDED_BY_PARENT = {"worker"}
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
LABELS_OF = {
    row.name + suffix: {*row.labels, *(("le",) if suffix == "_bucket" else ())}
    for row in SERIES
    for suffix in SUFFIXES[row.type]
}
LABELS_OF |= {name: set(labels) for name, labels in FOREIGN.items()}
_SERIES = re.compile(r"\b(?:sameflight_\w+|process_\w+|up|ALERTS)\b(?=\s*[{\[\s)*/<>=+-]|$)")


def name(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


@cache
def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def find_tool(tool: str) -> str:
    """The program, from where `.ci/run` puts it or the system has it. Skips the test where it is not installed."""
    places = [str(Path(sys.executable).parent), str(REPO / ".venv-checks/bin"), os.environ["PATH"], "/sbin"]
    found = shutil.which(tool, path=os.pathsep.join(places))
    if found is None:
        pytest.skip(f"{tool} is not installed")
    return found


def check(*command: str, cwd: Path = REPO, **env: str) -> str:
    """Run a validator; what it says if it is content."""
    ended = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **env}
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


# -- settings, versions, style -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_setting_that_is_named_exists(path: Path) -> None:
    """Also in comments: what a reader copies has to work."""
    named = set(re.findall(r"\b(?:SAMEFLIGHT_[A-Z_]+|[A-Z]+_API_KEY)\b", path.read_text("utf-8")))

    assert named - ENVIRONMENTS == set()


def test_every_image_of_ours_has_the_version_of_the_package() -> None:
    """One release, one tag."""
    tags = {
        tag
        for path in FILES
        for tag in re.findall(r"(?:\bsameflight:|newTag: )([0-9][\w.]*)", path.read_text("utf-8"))
    }

    assert tags == {__version__}


def test_yaml_is_tidy() -> None:
    """No key twice, no truth that is none, nothing that hangs over."""
    rules = (
        "{extends: default, rules: {document-start: disable, line-length: {max: 130}, quoted-strings: disable,"
        " comments: {min-spaces-from-content: 1}, octal-values: disable, truthy: {check-keys: false},"
        " key-duplicates: {forbid-duplicated-merge-keys: true}}}"
    )
    check(find_tool("yamllint"), "--strict", "-d", rules, *map(str, YAML))


# -- series ------------------------------------------------------------------------------------------------------


def alerts() -> list[dict[str, Any]]:
    return [rule for group in read(RULES)["groups"] for rule in group["rules"]]


@cache
def board() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(BOARD.read_text("utf-8"))
    return loaded


def graphs() -> list[dict[str, Any]]:
    return [panel for panel in board()["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    """Where each stands, and the expression."""
    for rule in alerts():
        yield rule["alert"], rule["expr"]
    for panel in graphs():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in board()["templating"]["list"]:
        if variable["type"] == "query":
            query = variable["definition"]
            yield variable["name"], re.sub(r"label_values\((.*), (\w+)\)", r"sum by (\2) (\1)", query)
    for each in board()["annotations"]["list"]:
        if "expr" in each:
            yield each["name"], each["expr"]
    for rule in read(DEPLOY / "prometheus/adapter.yaml")["rules"]["custom"]:
        query = rule["metricsQuery"].replace(",<<.LabelMatchers>>", "").replace("<<.GroupBy>>", "pod")
        yield "adapter", query
        yield "adapter", rule["seriesQuery"]


def unquoted(text: str) -> str:
    return re.sub(r'"[^"]*"', '""', text)


def series_in(expression: str) -> set[str]:
    """Names of series: not of labels in braces or behind by, not within quotes."""
    bare = re.sub(r"\{[^}]*\}", "{}", unquoted(expression))
    return set(_SERIES.findall(re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", "", bare)))


def scope_of(expression: str, start: int) -> str:
    """What stands between the parenthesis at `start` and the one that closes it."""
    depth = 0
    for end in range(start, len(expression)):
        depth += {"(": 1, ")": -1}.get(expression[end], 0)
        if not depth:
            return expression[start : end + 1]
    raise AssertionError(f"no end: {expression}")


@pytest.mark.parametrize("expression", [pytest.param(text, id=where) for where, text in expressions()])
def test_every_series_and_label_that_is_asked_for_exists(expression: str) -> None:
    """Labels in selectors belong to their series, labels of `by` to every series that is summed."""
    text = unquoted(expression)
    found = series_in(expression)
    assert found
    assert found - set(LABELS_OF) == set()
    for each in re.finditer(r"(\w+)\{([^}]*)\}", text):
        labels = set(re.findall(r"(\w+)\s*[=!]", each[2]))
        assert labels <= LABELS_OF[each[1]] | ADDED, each[0]
    for each in re.finditer(r"\bby \(([^)]*)\) \(", text):
        labels = {label.strip() for label in each[1].split(",")}
        scope = scope_of(text, each.end() - 1)
        made = {"where"} if "label_replace(" in scope else set()
        for series in series_in(scope):
            assert labels <= LABELS_OF[series] | ADDED | ADDED_BY_PARENT | made, f"{series} by {labels}"


def test_the_names_that_are_compared_are_those_of_a_rendered_page() -> None:
    """What the table says is what a scrape shows, with the suffixes of histograms."""
    metrics = Metrics()
    for row in SERIES:
        if row.type == "histogram":
            family = getattr(metrics, row.short)
            (family.at(*row.labels) if row.labels else family).observe(0.1)
    body, _ = metrics.render(["text/plain"])
    shown = set(re.findall(r"^([a-z_]+)(?:\{|\s)", body.decode(), re.MULTILINE))

    assert shown <= set(LABELS_OF)
    assert {row.name + "_bucket" for row in SERIES if row.type == "histogram"} <= shown


@pytest.mark.parametrize("panel", graphs(), ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows_in_which_unit(panel: dict[str, Any]) -> None:
    """And its legend names labels that its expression keeps."""
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["options"].get("yAxis", panel["fieldConfig"]["defaults"])["unit"]
    for target in panel["targets"]:
        assert target["datasource"]["uid"] == "${datasource}"
        legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        kept = {label.strip() for by in re.findall(r"\bby \(([^)]*)\)", target["expr"]) for label in by.split(",")}
        assert legend <= kept, target["expr"]
        assert "_total" not in target["expr"] or re.search(r"\b(rate|increase)\(", target["expr"])


def test_the_dashboard_is_whole() -> None:
    """The rows that people look for, panels that do not overlap, ids of their own, one data source to choose."""
    whole = board()
    assert whole["schemaVersion"] >= 39
    assert whole["templating"]["list"][0]["type"] == "datasource"
    rows = [panel["title"] for panel in whole["panels"] if panel["type"] == "row"]
    assert rows == ["At a glance", "Traffic", "Latency", "Savings", "Targets and breakers",
                    "Keys, limits, budgets, usage", "Saturation", "Process"]  # fmt: skip
    ids = [panel["id"] for panel in whole["panels"]]
    assert len(set(ids)) == len(ids)
    cells = [
        (x, y)
        for panel in whole["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) == 23


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    """Its values and labels are those that its expression keeps, and a test raises it."""
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert len(rule["annotations"]["runbook"]) > 80
    used = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    kept = {label.strip() for by in re.findall(r"\bby \(([^)]*)\)", rule["expr"]) for label in by.split(",")}
    assert used <= (kept or ADDED)
    raised = {
        sample["labels"]
        for each in read(RULE_TESTS)["tests"]
        for expr in each["promql_expr_test"]
        for sample in expr["exp_samples"]
    }
    assert f'{{alertname="{rule["alert"]}"}}' in raised


def test_alerts_that_refer_to_others_name_existing_ones() -> None:
    """A runbook must not lead nowhere."""
    names = {rule["alert"] for rule in alerts()}
    named = {word for path in FILES for word in re.findall(r"\bSameflight[A-Z]\w+", path.read_text("utf-8"))}

    assert named <= names


@pytest.mark.long
def test_promtool_takes_the_configuration_the_rules_and_every_expression(tmp_path: Path) -> None:
    """Alerts are raised by what they are for and by nothing else; expressions of the dashboard parse."""
    promtool = find_tool("promtool")
    check(promtool, "check", "config", "prometheus.yml", cwd=DEPLOY / "prometheus")
    check(promtool, "test", "rules", RULE_TESTS.name, cwd=RULE_TESTS.parent)
    spans = re.compile(r"\$__(?:rate_interval|range)")
    rules = [
        {"record": f"panel:{number}", "expr": spans.sub("5m", expression)}
        for number, (_, expression) in enumerate(expressions())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}), "utf-8")
    assert f"{len(rules)} rules found" in check(promtool, "check", "rules", str(file))


# -- the image ---------------------------------------------------------------------------------------------------


def test_hadolint_is_content_with_the_image() -> None:
    """Without a word of its own to switch a rule off."""
    assert "hadolint" not in (DEPLOY / "docker/Dockerfile").read_text("utf-8")
    check(find_tool("hadolint"), "deploy/docker/Dockerfile")


def test_the_image_is_made_of_files_that_the_builder_is_given() -> None:
    """Each source of COPY exists and is let through by .dockerignore; the package needs no other."""
    ignore = (REPO / ".dockerignore").read_text("utf-8").splitlines()
    let_in = {line[1:].rstrip("/") for line in ignore if line.startswith("!")}
    lines = (DEPLOY / "docker/Dockerfile").read_text("utf-8").splitlines()
    copies = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    copied = {source for sources in copies for source in sources}

    assert "*" in ignore
    assert copied == let_in
    assert all((REPO / source).exists() for source in copied)
    project = tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))["project"]
    assert {project["readme"], *project["license-files"]} <= copied
    assert not any(fnmatch(source, line) for source in copied for line in ignore if line[0] not in "!*#")


def test_the_image_runs_one_command_as_nobody_in_particular() -> None:
    """Signals reach it, health is its own, and its settings are possible ones."""
    run_stage = (DEPLOY / "docker/Dockerfile").read_text("utf-8").split(" AS run\n")[1]

    assert "\nUSER 65532:65532\n" in run_stage
    assert '\nENTRYPOINT ["sameflight"]\nCMD ["serve"]' in run_stage
    assert "\nSTOPSIGNAL SIGTERM\n" in run_stage
    assert 'CMD ["sameflight", "healthcheck"]' in run_stage
    settings = dict(re.findall(r"(SAMEFLIGHT_\w+)=(\S+)", run_stage))
    loaded = load_settings(settings)
    assert not loaded.warnings
    assert f"EXPOSE {loaded.settings.port} {loaded.settings.admin_port}\n" in run_stage


# -- compose -----------------------------------------------------------------------------------------------------


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = read(COMPOSE)["services"]
    return found


def resolve(value: str) -> str:
    return re.sub(r"\$\{(\w+)[^}]*\}", r"secret-of-\1", value)


def test_compose_keeps_to_its_specification() -> None:
    """By the schema of the specification."""
    if find_spec("check_jsonschema") is None:
        pytest.skip("check-jsonschema is not installed")
    check(find_tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(COMPOSE))


@pytest.mark.parametrize("service", services())
def test_a_service_of_compose_is_confined_bounded_and_watched(service: str) -> None:
    """No root file system to write to, no capability, a limit of memory, CPU and processes, a health check."""
    about = services()[service]

    assert about["read_only"] is True
    assert about["cap_drop"] == ["ALL"]
    assert "cap_add" not in about
    assert set(about["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert about["healthcheck"]
    assert all(port.startswith("127.0.0.1:") for port in about.get("ports", ()))
    assert ":latest" not in about["image"]
    assert ":" in about["image"]
    volumes = read(COMPOSE)["volumes"]
    for volume in about.get("volumes", ()):
        source = volume.split(":")[0]
        assert (DEPLOY / source).exists() if source.startswith(".") else source in volumes
    for needed in about.get("depends_on", ()):
        assert needed in services()


def test_every_secret_of_compose_is_in_the_example_of_its_file() -> None:
    """And the example holds no value that somebody could forget to change."""
    needed = set(re.findall(r"(?<!\$)\$\{(\w+)", COMPOSE.read_text("utf-8")))
    example = (DEPLOY / "compose.env.example").read_text("utf-8")
    given = dict(re.findall(r"^(\w+)=(.*)$", example, re.MULTILINE))

    assert set(given) == needed
    assert set(given.values()) == {""}


@pytest.mark.parametrize("service", ["proxy-1", "proxy-2", "proxy-3"])
def test_a_proxy_of_compose_can_start_with_its_settings(service: str) -> None:
    """Its drain fits the time that it is given to stop, and its addresses are services."""
    about = services()[service]
    env = {key: resolve(value) for key, value in about["environment"].items()}
    loaded = load_settings({**env, "SAMEFLIGHT_HOST": "0.0.0.0"})

    assert loaded.warnings == ()
    drain_s = loaded.settings.drain_delay_s + loaded.settings.drain_grace_s
    assert int(about["stop_grace_period"].removesuffix("s")) >= drain_s + 15
    hosts = set(re.findall(r"@([a-z]+)[:/]", loaded.settings.database_url + loaded.settings.cache_url))
    assert hosts == {"postgres", "valkey"}
    assert loaded.settings.limit_workers == 3
    assert about["volumes"] == [f"state-{service[-1]}:/var/lib/sameflight"]


def test_nginx_of_compose_asks_the_three_proxies(capsys: pytest.CaptureFixture[str]) -> None:
    """The command that writes its configuration is a good one and names each of them."""
    words = shlex.split(services()["nginx-config"]["command"][0])
    command, target = words[: words.index(">")], words[-1]
    assert command[0] == "sameflight"
    assert run_command(command[1:]) == 0
    text = capsys.readouterr().out

    assert re.findall(r"server (proxy-\d:\d+) ", text) == ["proxy-1:8080", "proxy-2:8080", "proxy-3:8080"]
    assert "listen 8080 " in text
    about = services()["nginx"]
    assert target in about["command"]
    assert about["ports"] == ["127.0.0.1:8080:8080"]
    for path in re.findall(r"^\s*(?:pid|\w+_temp_path) (\S+);", text, re.MULTILINE):
        assert any(path.startswith(place.split(":")[0]) for place in about["tmpfs"])


def test_prometheus_scrapes_every_proxy_and_grafana_finds_both() -> None:
    """Addresses of one file are services of the other."""
    jobs = {job["job_name"]: job for job in read(DEPLOY / "prometheus/prometheus.yml")["scrape_configs"]}
    scraped = jobs["sameflight"]["static_configs"][0]["targets"]
    assert scraped == [f"{service}:8081" for service in services() if service.startswith("proxy-")]
    source = read(DEPLOY / "grafana/provisioning/datasources/prometheus.yaml")["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    provider = read(DEPLOY / "grafana/provisioning/dashboards/sameflight.yaml")["providers"][0]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in services()["grafana"]["volumes"]


# -- systemd -----------------------------------------------------------------------------------------------------


def unit_values(key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text("utf-8"), re.MULTILINE)


def test_the_unit_gives_a_drain_the_time_it_takes() -> None:
    """With the settings of the unit, and those of the example beside it."""
    env = dict(line.split("=", 1) for line in unit_values("Environment"))
    example = (DEPLOY / "systemd/sameflight.env.example").read_text("utf-8")
    env |= dict(re.findall(r"^#?(\w+)=(.*)$", example, re.MULTILINE))
    loaded = load_settings({key: value for key, value in env.items() if key.startswith(("SAMEFLIGHT_", "OPENAI"))})

    assert loaded.warnings == ()
    assert int(unit_values("TimeoutStopSec")[0]) > loaded.settings.drain_delay_s + loaded.settings.drain_grace_s + 15
    assert unit_values("KillSignal") == ["SIGTERM"]


def test_systemd_takes_the_units_and_finds_them_hardened(tmp_path: Path) -> None:
    """`systemd-analyze verify` on an instance of each, and an exposure of less than 2 of 10."""
    analyze = find_tool("systemd-analyze")
    program = f"{Path(sys.executable).parent}/sameflight"
    for kind in ("service", "socket"):
        text = (DEPLOY / f"systemd/sameflight@.{kind}").read_text("utf-8")
        text = text.replace("/opt/sameflight/bin/sameflight", program)
        for instance in ("", "main"):
            (tmp_path / f"sameflight@{instance}.{kind}").write_text(text, "utf-8")
    units = [str(tmp_path / f"sameflight@main.{kind}") for kind in ("service", "socket")]
    said = check(analyze, "verify", *units, cwd=tmp_path, SYSTEMD_UNIT_PATH=f"{tmp_path}:")
    assert "sameflight@" not in said
    check(analyze, "security", "--no-pager", "--offline=true", "--threshold=20", units[0])


def test_sockets_of_the_socket_unit_are_where_nginx_is_told_to_look() -> None:
    """`sameflight nginx` with the options that the unit's comment gives."""
    text = (DEPLOY / "systemd/sameflight@.socket").read_text("utf-8")
    command = re.search(r"sameflight (nginx .*) >", text)
    assert command
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        assert run_command(shlex.split(command[1])) == 0

    listens = re.findall(r"^ListenStream=(\S+)$", text, re.MULTILINE)
    assert [path.replace("%i", "main") for path in listens] == re.findall(r"server unix:(\S+) ", out.getvalue())
