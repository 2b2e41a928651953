"""``healthcheck`` against a small server that answers as it is told."""

import argparse
import io
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from proxy.cli import healthcheck


def run(port, *arguments, **env):
    parser = argparse.ArgumentParser()
    healthcheck.add_parser(parser.add_subparsers())
    args = parser.parse_args(["healthcheck", "--admin-port", str(port), *arguments])
    out, err = io.StringIO(), io.StringIO()
    return args.run(args, out, err, env), out.getvalue(), err.getvalue()


@pytest.fixture
def admin():
    """A server on loopback; ``admin.status`` is what it answers, ``admin.paths`` what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.paths.append(self.path)
            self.send_response(self.server.status)
            self.end_headers()
            self.wfile.write(b'{"phase": "draining"}\n')

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.status, server.paths = 200, []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_ready_process_is_success(admin):
    """The readiness of the admin listener decides."""
    assert run(admin.server_port) == (0, "ready\n", "")
    assert admin.paths == ["/readyz"]


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_an_address_for_everywhere_is_asked_on_loopback(admin, host):
    """In a container the admin listener listens on all addresses."""
    assert run(admin.server_port, SAMEFLIGHT_ADMIN_HOST=host)[0] == 0


def test_a_draining_process_is_failure(admin):
    """With what it said."""
    admin.status = 503
    code, out, err = run(admin.server_port)
    assert (code, out) == (1, "")
    assert 'not ready: 503 {"phase": "draining"}' in err


def test_a_process_that_is_not_there_is_failure():
    """Nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        code, _, err = run(port)
    assert code == 1
    assert f"not ready: 127.0.0.1:{port}" in err


def test_an_answer_that_is_not_http_is_failure():
    """Something else listens there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-x\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        code, _, err = run(listener.getsockname()[1])
        thread.join()
    assert code == 1
    assert "not ready" in err


def test_a_bad_setting_is_failure():
    """Rather than a guess."""
    code, _, err = run("many")
    assert code == 1
    assert "--admin-port" in err
