"""``sameflight mock`` as a process."""

from __future__ import annotations

import argparse
import http.client
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.cli import mock
from proxy.mock import Fault, MockOptions

_ROOT = Path(__file__).parents[3]
_PROGRAM = """
import argparse, sys
from proxy.cli import mock
parser = argparse.ArgumentParser()
mock.add_parser(parser.add_subparsers(required=True))
args = parser.parse_args(sys.argv[1:])
sys.exit(args.run(args))
"""


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    mock.add_parser(parser.add_subparsers(required=True))
    return parser.parse_args(["mock", *words])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command_serves_until_a_signal_and_exits_with_success(number: signal.Signals) -> None:
    """It prints where it listens, answers there, and ends with code 0."""
    command = [sys.executable, "-c", _PROGRAM, "mock", "--port", "0", "--latency-ms", "0"]
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(5)]
        port = int(lines[0].rpartition(":")[2])
        assert lines[1].strip() == f"OPENAI_BASE_URL=http://127.0.0.1:{port}/v1"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/v1/models", headers={"authorization": "Bearer x"})
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(number)
        rest, errors = process.communicate(timeout=20)
    assert (process.returncode, rest.strip(), errors) == (0, "1 calls, 0 of them left by their clients", "")


def test_taken_port_is_a_failure_that_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """Code 1 and one line, no traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code = mock.run(parse("--port", str(taken.getsockname()[1])))
    assert (code, "cannot listen" in capsys.readouterr().err) == (1, True)


def test_impossible_option_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    """Code 2, and the line names the option."""
    assert mock.run(parse("--fault-rate", "2")) == 2
    assert "fault_rate must be between 0 and 1" in capsys.readouterr().err


def test_arguments_become_options() -> None:
    """Every argument reaches its option."""
    args = parse("--pace-ms", "5", "--tokens", "7", "--fault", "stall", "--fault-after", "2", "--no-usage", "--vary")
    assert mock.read_options(args) == MockOptions(
        latency_ms=300.0, pace_ms=5.0, tokens=7, fault=Fault.STALL, fault_after=2, usage=False, vary=True
    )
