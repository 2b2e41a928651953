"""The Node SDKs and the AI SDK over them see on both sides the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.scenes.sdk.installed import INSTALL_S, node_packages
from tests.scenes.sdk.sides import Side, Sides, plain

HERE = Path(__file__).with_name("node")
OLDEST_NODE = 18

pytestmark = [pytest.mark.long, pytest.mark.timeout(INSTALL_S + 120)]

RAISED = {
    "openai": {"missing", "bad", "overloaded", "errorEvent", "timedOut"},
    "anthropic": {"missing", "overloaded", "errorEvent", "timedOut"},
    "mistral": {"missing", "overloaded"},
    "ai-openai": {"missing", "overloaded"},
    "ai-anthropic": {"missing", "overloaded"},
}


@pytest.fixture
def node() -> str:
    """The interpreter, if there is one and it is new enough for the SDKs."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not installed")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    if int(version.strip().lstrip("v").partition(".")[0]) < OLDEST_NODE:
        pytest.skip(f"node {version.strip()} is older than the SDKs allow ({OLDEST_NODE})")
    return found


def run_program(node: str, script: Path, vendor: str, side: Side) -> dict[str, Any]:
    """Every step of the program as the SDK saw it."""
    names = ("OPENAI_", "ANTHROPIC_", "MISTRAL_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    env["AI_SDK_LOG_WARNINGS"] = "false"
    command = [node, str(script), vendor, side.url]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = plain(json.loads(done.stdout.splitlines()[-1]))
    return seen


@pytest.mark.parametrize("vendor", RAISED)
def test_node_sdk_sees_the_same_on_both_sides(
    unhurried_sides: Sides, node: str, tmp_path: Path, vendor: str
) -> None:
    """Values, exceptions and the number of calls are equal, step by step."""
    sides = unhurried_sides
    packages = node_packages(HERE / "package.json")
    script = tmp_path / "program.mjs"
    shutil.copy(HERE / "program.mjs", script)
    # A module is looked for beside the script that imports it.
    (tmp_path / "node_modules").symlink_to(packages / "node_modules")

    direct, proxied = (run_program(node, script, vendor, side) for side in sides)

    assert proxied == direct
    assert sides.proxied.repetitions == sides.direct.repetitions
    assert {name for name, seen in proxied.items() if "raised" in seen} == RAISED[vendor]
    if "cut" in proxied:
        assert proxied["cut"] == {"value": {"raised": True}}
