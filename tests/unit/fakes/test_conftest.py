"""The suite's own safety net, tried on tests that break its rules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[3]
_LEAKY = '''
import asyncio

async def forgotten():
    await asyncio.get_running_loop().create_future()

async def test_leaves_a_task():
    test_leaves_a_task.task = asyncio.create_task(forgotten(), name="stowaway")

async def test_ends_its_task():
    task = asyncio.create_task(forgotten())
    task.cancel()

def test_without_a_loop():
    pass
'''


def test_task_left_behind_fails_its_test_by_name(tmp_path: Path) -> None:
    """Of three tests only the one that leaves a task running is an error, and the task is named."""
    probe = tmp_path / "test_probe.py"
    probe.write_text(_LEAKY)
    settings = str(_ROOT / "pyproject.toml")
    once = ("-n", "0", "--reruns", "0")
    command = [sys.executable, "-m", "pytest", "-q", "-c", settings, "-p", "tests.conftest", *once, str(probe)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert "3 passed, 1 error" in done.stdout, done.stdout
    assert "stowaway" in done.stdout
