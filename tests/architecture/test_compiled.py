"""The compiled build (deploy/docker/compile.py): what mypyc cannot do is not asked of it, and what it makes answers
as plain Python does."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from proxy.mock import MockOptions, MockUpstream
from tests.fakes.client import RawClient
from tests.fakes.clock import FrozenClock

REPO = Path(__file__).parents[2]
SCRIPT = REPO / "deploy" / "docker" / "compile.py"
KEY = "sk-test-aaaaaaaaaaaaaaaaaaaaaaaa"


def load_script() -> Any:
    """The script as a module."""
    spec = spec_from_file_location("sameflight_compile", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


COMPILED: tuple[str, ...] = load_script().MODULES
LEFT_OUT: dict[str, str] = load_script().LEFT_OUT


def source(module: str) -> str:
    return (REPO / "proxy" / module.replace(".", "/")).with_suffix(".py").read_text("utf-8")


@cache
def parse(module: str) -> ast.Module:
    return ast.parse(source(module))


def classes(text: str) -> list[tuple[str, list[str]]]:
    """The classes at the top of a module with what they derive from; protocols are no classes once compiled."""
    found = re.findall(r"^class (\w+)(?:\(([^)]*)\))?:", text, re.MULTILINE)
    named = [(name, [base.strip() for base in bases.split(",")]) for name, bases in found]
    return [(name, bases) for name, bases in named if "Protocol" not in bases]


def awaits(nodes: list[ast.stmt]) -> Iterator[ast.AST]:
    """What may let others run, in these statements."""
    for node in nodes:
        yield from (inner for inner in ast.walk(node) if isinstance(inner, (ast.Await, ast.AsyncFor, ast.AsyncWith)))


# -- what is asked of mypyc ------------------------------------------------------------------------------------------


def test_every_module_of_the_list_exists_once_and_is_not_left_out_as_well() -> None:
    """A module that was renamed takes its place in the list with it."""
    everything = [*COMPILED, *LEFT_OUT]

    assert len(everything) == len(set(everything))
    for module in everything:
        assert source(module)


def test_no_compiled_coroutine_awaits_while_an_exception_is_on_its_way() -> None:
    """A compiled coroutine that awaits in a ``finally``, or before it raises again, can return as if nothing had
    happened; one that is held up by the end of an ``async with`` may never return. `Until` ends at once."""
    found = []
    for module in COMPILED:
        for node in ast.walk(parse(module)):
            if isinstance(node, ast.Try):
                found += [f"{module}:{inner.lineno}" for inner in awaits(node.finalbody)]  # type: ignore[attr-defined]
                for handler in node.handlers:
                    again = any(isinstance(inner, ast.Raise) and not inner.exc for inner in ast.walk(handler))
                    if again and list(awaits(handler.body)):
                        found.append(f"{module}:{handler.lineno}")
            elif isinstance(node, ast.AsyncFor) or (
                isinstance(node, ast.AsyncWith)
                and [ast.unparse(item.context_expr) for item in node.items] != ["until"]
            ):
                found.append(f"{module}:{node.lineno}")

    assert found == []


def test_no_interpreted_class_derives_from_a_compiled_one() -> None:
    """The first instance of one would be refused, in the middle of a request."""
    native = {name for module in COMPILED for name, _ in classes(source(module))}
    found = []
    for path in sorted((REPO / "proxy").rglob("*.py")):
        module = ".".join(path.relative_to(REPO / "proxy").with_suffix("").parts)
        if module not in COMPILED:
            here = classes(path.read_text("utf-8"))
            foreign = native - {name for name, _ in here}
            found += [f"{module}.{name}" for name, bases in here if foreign.intersection(bases)]

    assert found == []


def test_defaults_of_named_parameters_stand_behind_those_without() -> None:
    """mypyc writes signatures that Python refuses otherwise, and the whole build fails."""
    found = []
    for module in COMPILED:
        for node in ast.walk(parse(module)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                given = [default is not None for default in node.args.kw_defaults]
                if given != sorted(given):
                    found.append(f"{module}.{node.name}")

    assert found == []


def test_a_package_that_was_changed_after_it_was_compiled_is_found_out(tmp_path: Path) -> None:
    """Native code wins over its source, so an edit would be without effect."""
    script = load_script()
    package = tmp_path / "proxy"
    shutil.copytree(REPO / "proxy", package, ignore=shutil.ignore_patterns("__pycache__", "*.so", "compiled.json"))
    assert script.main(["--package", str(package), "--check"]) == 0

    digests = {name: script._digest(package, name) for name in COMPILED}
    (package / "work.cpython-311-test.so").touch()
    assert script.main(["--package", str(package), "--check"]) == 1  # in part
    record = {"suffix": "-", "files": ["work.cpython-311-test.so"], "sources": digests}
    (package / "compiled.json").write_text(json.dumps(record))
    assert script.main(["--package", str(package), "--check"]) == 0
    with (package / "work.py").open("a") as source:
        source.write("\n")
    assert script.main(["--package", str(package), "--check"]) == 1

    assert script.main(["--package", str(package), "--remove"]) == 0
    assert script.main(["--package", str(package), "--check"]) == 0


def test_a_build_that_fails_leaves_the_package_as_it_was(tmp_path: Path) -> None:
    """A module that is missing, or an interpreter of another kind: one line, and nothing was touched."""
    package = tmp_path / "proxy"
    package.mkdir()
    (package / "__main__.py").touch()

    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--package", str(package)], text=True, capture_output=True, check=False
    )

    assert done.returncode == 1
    assert done.stderr.startswith("compile: ")
    assert [path.name for path in tmp_path.rglob("*")] == ["proxy", "__main__.py"]


# -- what it makes ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(root: Path, upstream: int, state: Path) -> AsyncIterator[tuple[int, str]]:
    """A proxy from the package in ``root``: its port, and what it says of itself."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",
        "SAMEFLIGHT_OPENAI_UPSTREAM": f"http://127.0.0.1:{upstream}",
        "SAMEFLIGHT_ANTHROPIC_UPSTREAM": f"http://127.0.0.1:{upstream}",
        "SAMEFLIGHT_PORT": "0",
        "SAMEFLIGHT_ADMIN_PORT": "0",
        "SAMEFLIGHT_LOG_FORMAT": "json",
        "SAMEFLIGHT_STATE_DIR": str(state),
    }
    command = [sys.executable, "-m", "proxy"]
    asked = await asyncio.create_subprocess_exec(
        *command, "version", cwd=root, env=environment, stdout=asyncio.subprocess.PIPE
    )
    said = (await asked.communicate())[0].decode().strip()
    process = await asyncio.create_subprocess_exec(
        *command, "serve", cwd=root, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            while b'"serving"' not in (line := await process.stdout.readline()):
                assert line, "it ended"
        port = int(json.loads(line)["data"].rpartition(":")[2])
        drained = asyncio.create_task(process.stdout.read())
        yield port, said
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()
    assert process.returncode == 0
    assert b'"error"' not in await drained


def conversations() -> list[tuple[str, str, dict[str, Any] | bytes, list[tuple[str, str]]]]:
    """Requests of many kinds: whole, streamed, cached, refused, broken."""
    bearer = ("authorization", f"Bearer {KEY}")
    asked: list[tuple[str, str, dict[str, Any] | bytes, list[tuple[str, str]]]] = []
    for number in range(8):
        question: dict[str, Any] = {
            "model": "gpt-4o-mini",
            "messages": [{"role": "user", "content": f"question {number}"}],
        }
        asked += [
            ("POST", "/v1/chat/completions", question, [bearer]),
            ("POST", "/v1/chat/completions", {**question, "stream": True}, [bearer]),
            ("POST", "/v1/chat/completions", question, [bearer, ("x-sameflight-cache", "on")]),
            ("POST", "/v1/chat/completions", question, [bearer, ("x-sameflight-cache", "on")]),
            ("POST", "/v1/messages", {**question, "max_tokens": 9}, [("x-api-key", KEY)]),
        ]
    asked += [
        ("POST", "/v1/embeddings", {"model": "text-embedding-3-small", "input": "a"}, [bearer]),
        ("GET", "/v1/models", b"", [bearer]),
        ("POST", "/v1/chat/completions", b"{", [bearer]),
        ("POST", "/v1/chat/completions", {"model": "gpt-4o-mini", "messages": []}, []),
        ("POST", "/v1/chat/completions", b"[" * 5000, [bearer]),
        ("GET", "/nowhere", b"", [bearer]),
        ("GET", "/v1/%2e%2e/secrets", b"", [bearer]),
        ("POST", "/v1/chat/completions", b"{}", [bearer, ("x-sameflight-cache", "perhaps")]),
        ("POST", "/v1/chat/completions", b"{}", [bearer, ("x-sameflight-timeout", "soon")]),
        ("PUT", "/v1/files/a/b", b"bytes" * 5000, [bearer]),
    ]
    return asked


_MOMENTARY = (b"date", b"x-response-time", b"server-timing", b"age", b"cache-status")
_OWN = re.compile(rb'req_[0-9a-f]{20}(?![0-9a-f])|(?<="created":)\d+')
"""The proxy's ids, which name its process (the mock's are longer), and the second in which the mock answered."""


async def ask_all(port: int) -> list[tuple[int, list[tuple[bytes, bytes]], bytes]]:
    """Status, headers and body of every answer."""
    answers = []
    for method, path, body, headers in conversations():
        async with await RawClient.connect(port=port) as client:
            answer = await (await client.start(method, path, headers, body)).read_end()
            kept = [(name, _OWN.sub(b"", value)) for name, value in answer.headers if name not in _MOMENTARY]
            answers.append((answer.status, kept, _OWN.sub(b"", answer.body)))
    return answers


@pytest.mark.long
@pytest.mark.timeout(400)
async def test_a_compiled_proxy_answers_as_a_plain_one(tmp_path: Path) -> None:
    """Fifty requests of all kinds, byte for byte, from two processes that differ in nothing else."""
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("there is no C compiler")
    for name in ("compiled", "plain"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "compiled.json")
        shutil.copytree(REPO / "proxy", tmp_path / name / "proxy", ignore=ignored)
    build = [sys.executable, str(SCRIPT), "--quick", "--package", str(tmp_path / "compiled" / "proxy")]
    built = await asyncio.to_thread(subprocess.run, build, text=True, capture_output=True, check=False)
    assert built.returncode == 0, built.stderr

    answers = {}
    for name in ("compiled", "plain"):
        state = tmp_path / name / "state"
        state.mkdir(mode=0o700)
        async with (
            MockUpstream(MockOptions(), clock=FrozenClock()) as upstream,
            serving(tmp_path / name, upstream.port, state) as (port, said),
        ):
            assert said.endswith(f"({'compiled' if name == 'compiled' else 'pure'})")
            answers[name] = await ask_all(port)

    for asked, compiled, plain in zip(conversations(), answers["compiled"], answers["plain"], strict=True):
        assert compiled == plain, asked
    assert {200, 400, 401, 404} <= {status for status, _, _ in answers["plain"]}
