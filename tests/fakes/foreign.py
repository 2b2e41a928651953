"""Upstreams that others wrote, as processes on the loopback interface.

They come from registries and are installed beside the project, not into it: `llmock`, `fakellm` and `mockllm` into
``.venv-peers``, `aimock` into ``.node-peers`` (`.ci/run` does both). Where one is not installed, whoever asks for it
is skipped with the reason. Each is told beforehand what it answers to which words.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import httpx2
import pytest
import yaml

REPOSITORY: Final = Path(__file__).resolve().parents[2]
PYTHON_PEERS: Final = REPOSITORY / ".venv-peers"
NODE_PEERS: Final = REPOSITORY / ".node-peers"
START_S: Final = 40.0
LEAST_NODE: Final = 20

_LISTENS: Final = re.compile(rb"http://127\.0\.0\.1:([1-9][0-9]*)")

GREETING: Final = "Good morning ✈ from a mock with quite a few more words."
TOKENS: Final = (11, 7)
"""What an answer of `aimock` costs: prompt and completion."""
CITIES: Final = ("Paris", "Rome")
AFTER_TOOLS: Final = "It is sunny in both."
HALF: Final = "half of it"

WORDS: Final = {"prompt_tokens": TOKENS[0], "completion_tokens": TOKENS[1], "total_tokens": sum(TOKENS)}
ERRORS: Final[dict[int, tuple[str, str]]] = {
    400: ("invalid_request_error", "This model's maximum context length is 8192 tokens."),
    401: ("authentication_error", "invalid x-api-key"),
    404: ("not_found_error", "model: nobody"),
    429: ("rate_limit_error", "Slow down."),
    500: ("api_error", "Something broke."),
    503: ("overloaded_error", "Overloaded."),
}


class Peer(NamedTuple):
    """One of them, running."""

    name: str
    url: str
    """Without a path."""

    def get(self, path: str) -> Any:
        """What it says there, from JSON."""
        with httpx2.Client(base_url=self.url, timeout=10, trust_env=False) as client:
            return client.get(path).raise_for_status().json()

    def post(self, path: str, value: object = None) -> None:
        with httpx2.Client(base_url=self.url, timeout=10, trust_env=False) as client:
            client.post(path, json=value).raise_for_status()


def _aimock_fixtures() -> dict[str, Any]:
    """What `aimock` answers in every dialect, by a word in the last thing the user said."""
    calls = [{"id": f"call_{city.lower()}", "name": "weather", "arguments": {"city": city}} for city in CITIES]
    said: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"userMessage": "weather", "hasToolResult": False}, {"toolCalls": calls, "usage": WORDS}),
        ({"userMessage": "weather", "hasToolResult": True}, {"content": AFTER_TOOLS, "usage": WORDS}),
        ({"userMessage": "long"}, {"content": HALF, "finishReason": "length", "usage": WORDS}),
    ]
    for status, (kind, message) in ERRORS.items():
        error = {"error": {"message": message, "type": kind}, "status": status}
        said.append(({"userMessage": f"refuse {status}"}, error))
    said.append(({}, {"content": GREETING, "usage": WORDS}))
    return {"fixtures": [{"match": match, "response": response} for match, response in said]}


def _fakellm_rules() -> dict[str, Any]:
    """The text and the errors for `fakellm`; it knows no errors in place of a stream."""
    rules: list[dict[str, Any]] = []
    for status, (_, message) in ERRORS.items():
        when = {"messages_contain": f"refuse {status}"}
        rules.append({"name": f"refuse-{status}", "when": when, "respond": {"status": status, "error": message}})
    return {"version": 1, "rules": [*rules, {"name": "rest", "respond": {"content": GREETING}}]}


def _mockllm_responses() -> dict[str, Any]:
    return {"responses": {"hello": GREETING}, "defaults": {"unknown_response": GREETING}}


def _python_peer(name: str) -> Path:
    program = PYTHON_PEERS / "bin" / name
    if not program.exists():
        pytest.skip(f"{name} is not installed in {PYTHON_PEERS.name} (.ci/run does it)")
    return program


def _node_peer() -> list[str]:
    program = NODE_PEERS / "node_modules" / "@copilotkit" / "aimock" / "dist" / "aimock-cli.js"
    node = shutil.which("node")
    if node is None or not program.exists():
        pytest.skip(f"aimock is not installed in {NODE_PEERS.name}, or there is no node (.ci/run installs both)")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.strip().removeprefix("v").partition(".")[0]) < LEAST_NODE:
        pytest.skip(f"aimock needs node {LEAST_NODE}, this is {version.strip()}")
    return [node, str(program)]


def _command(name: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """The command that starts a peer on a free port, and what it wants in its environment."""
    match name:
        case "aimock":
            (folder / "fixtures.json").write_text(json.dumps(_aimock_fixtures()), "utf-8")
            config = folder / "aimock.json"
            config.write_text(json.dumps({"port": 0, "llm": {"fixtures": "fixtures.json"}}), "utf-8")
            return [*_node_peer(), "--config", str(config)], {}
        case "llmock":
            return [str(_python_peer("llmock")), "serve", "--port", "0"], {}
        case "fakellm":
            path = folder / "fakellm.yaml"
            path.write_text(yaml.safe_dump(_fakellm_rules()), "utf-8")
            return [*_uvicorn("fakellm"), "fakellm.server:app"], {"FAKELLM_CONFIG": str(path)}
        case "mockllm":
            path = folder / "responses.yml"
            path.write_text(yaml.safe_dump(_mockllm_responses()), "utf-8")
            return [*_uvicorn("mockllm"), "mockllm.server:app"], {"MOCKLLM_RESPONSES_FILE": str(path)}
    raise ValueError(name)


def _uvicorn(name: str) -> list[str]:
    _python_peer(name)
    return [str(_python_peer("uvicorn")), "--port", "0", "--no-access-log"]


PEERS: Final = ("aimock", "llmock", "fakellm", "mockllm")


def _die_with_parent() -> None:
    """A run of tests that is killed ends no fixture."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


_LIBC: Final = ctypes.CDLL(None)
_PR_SET_PDEATHSIG: Final = 1


@contextmanager
def open_peer(name: str, folder: Path) -> Iterator[Peer]:
    """Start one of ``PEERS``, wait until it says where it listens, and end it by its process afterwards. ``folder``
    is empty and its own. Skips where it is not installed."""
    command, env = _command(name, folder)
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - one system call
    )
    assert process.stdout is not None
    said: deque[bytes] = deque(maxlen=200)
    reader = threading.Thread(target=said.extend, args=(process.stdout,), name=f"{name}-output", daemon=True)
    try:
        port = _wait_for_port(process.stdout, said)
        reader.start()
        if not port:
            pytest.fail(f"{name} did not start within {START_S:g} s:\n{b''.join(said).decode(errors='replace')}")
        yield Peer(name, f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        if reader.ident is not None:
            reader.join(10)
        process.stdout.close()


def _wait_for_port(output: IO[bytes], said: deque[bytes]) -> int:
    """The port in the first line that names one; 0 if none came in time or the output ended."""
    pending = b""
    deadline = time.monotonic() + START_S
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            piece = os.read(output.fileno(), 65_536)
            if not piece:
                return 0
            said.append(piece)
            pending += piece
            found = _LISTENS.search(pending.rpartition(b"\n")[0])
            if found:
                return int(found[1])
    return 0
