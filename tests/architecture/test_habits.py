"""Habits that reviews would have to repeat: checked here instead."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
PROXY = sorted((REPO / "proxy").rglob("*.py"))
TESTS = sorted((REPO / "tests").rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


@pytest.mark.long
def test_no_test_sleeps() -> None:
    """A scene meets at gates and counters; a turn of the loop (`sleep(0)`) is no sleep."""
    sleeps = [
        f"{name(path)}:{node.lineno}"
        for path in TESTS
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("asyncio.sleep", "time.sleep", "sleep")
        and [ast.unparse(argument) for argument in node.args] != ["0"]
    ]

    assert sleeps == []


def test_no_module_outgrows_its_one_job() -> None:
    """Beyond 450 lines a module has two jobs."""
    long = {name(path): lines for path in PROXY if (lines := len(path.read_text("utf-8").splitlines())) > 450}

    assert long == {}


@pytest.mark.long
def test_every_module_says_what_it_is_for() -> None:
    """The first thing a reader meets is the module's one law."""
    silent = [
        name(path)
        for path in PROXY
        if path.read_text("utf-8").strip() and not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]

    assert silent == []


@pytest.mark.long
def test_every_test_is_a_sentence_with_a_docstring() -> None:
    """A failing test tells what no longer holds."""
    mute = [
        f"{name(path)}:{node.lineno} {node.name}"
        for path in TESTS
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]

    assert mute == []


def test_nothing_unfinished_is_left_behind() -> None:
    """What is missing is told in an issue, not in a comment."""
    words = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|NotImplemented" r"Error)\b")
    marks = [
        f"{name(path)}:{number}"
        for path in [*PROXY, *TESTS]
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if words.search(line)
    ]

    assert marks == []
