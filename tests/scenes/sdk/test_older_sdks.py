"""The majors before the current ones of the OpenAI and Anthropic SDKs see on both sides the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.scenes.sdk.installed import INSTALL_S, python_packages
from tests.scenes.sdk.sides import Side, Sides, plain

PROGRAM = Path(__file__).with_name("older_program.py")

pytestmark = [pytest.mark.long, pytest.mark.timeout(INSTALL_S + 120)]

RAISED = {
    "openai": {
        "missing": ("NotFoundError", 404),
        "bad": ("BadRequestError", 400),
        "overloaded": ("InternalServerError", 503),
        "error_event": ("APIError", None),
        "timed_out": ("APITimeoutError", None),
    },
    "anthropic": {
        "missing": ("NotFoundError", 404),
        "overloaded": ("OverloadedError", 529),
        "error_event": ("APIStatusError", 200),
        "timed_out": ("APITimeoutError", None),
    },
}


def run_program(packages: Path, vendor: str, side: Side) -> dict[str, Any]:
    """Every step of the program as the older SDK saw it."""
    names = ("OPENAI_", "ANTHROPIC_", "PYTHON")
    env = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    env.update(PYTHONPATH=str(packages), PYTHONDONTWRITEBYTECODE="1")
    command = [sys.executable, str(PROGRAM), vendor, side.url]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = plain(json.loads(done.stdout))
    return seen


@pytest.mark.parametrize("requirement", ["openai==1.109.1", "openai==2.20.0", "anthropic==0.125.0"])
def test_older_major_sees_the_same_on_both_sides(unhurried_sides: Sides, requirement: str) -> None:
    """Values, exceptions and the number of calls are equal, step by step."""
    sides = unhurried_sides
    vendor, _, version = requirement.partition("==")
    packages = python_packages(requirement)

    direct, proxied = (run_program(packages, vendor, side) for side in sides)

    assert direct["version"] == version
    assert proxied == direct
    assert sides.proxied.repetitions == sides.direct.repetitions
    raised = {name: (seen["class"], seen["status_code"]) for name, seen in proxied.items() if "status_code" in seen}
    assert raised == RAISED[vendor]
