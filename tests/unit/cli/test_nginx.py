"""What `sameflight nginx` prints, and that nginx and its linter take it."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from proxy.cli.main import make_parser
from proxy.cli.nginx import OPERATIONS, Layout, UnusableError
from proxy.config.settings import Settings
from proxy.protocol import routes
from proxy.workers.cpus import count_workers
from proxy.workers.listening import addresses
from tests.fakes.nginx import BUILDS, find_nginx

REPO = Path(__file__).parents[3]
SINGLE = ["--workers", "4"]
SEVERAL = ["--workers", "4", "--hosts", "192.0.2.11:8101,192.0.2.12:8101,192.0.2.13:8101"]


def nginx(*words: str) -> tuple[int, str, str]:
    arguments = make_parser("nginx").parse_args(["nginx", *words])
    out, err = io.StringIO(), io.StringIO()
    code = arguments.run(arguments, out, err)
    return code, out.getvalue(), err.getvalue()


def servers(text: str) -> list[str]:
    return re.findall(r"^ *server (\S+) weight", text, re.MULTILINE)


@pytest.mark.parametrize(("file", "words"), [("single-host.conf", SINGLE), ("several-hosts.conf", SEVERAL)])
def test_the_files_to_be_copied_are_what_the_command_prints(file: str, words: list[str]) -> None:
    """Byte for byte; each names the command in its head."""
    text = (REPO / "nginx" / file).read_text("utf-8")
    assert nginx(*words) == (0, text, "")
    assert f"\n#     sameflight nginx {' '.join(words)}\n" in text
    assert max(len(line) for line in text.splitlines() if line.lstrip().startswith("#")) <= 120
    assert "{{" not in text


def test_workers_are_on_sockets_ports_or_hosts() -> None:
    """As many as asked for, in one ring; the same names whoever prints them."""
    assert servers(nginx("--workers", "2")[1]) == [f"unix:/run/sameflight/worker-{n}.sock" for n in (0, 1)]
    assert servers(nginx("--workers", "1", "--sockets", "/x/")[1]) == ["unix:/x/worker-0.sock"]
    assert servers(nginx("--workers", "2", "--ports", "9001")[1]) == ["127.0.0.1:9001", "127.0.0.1:9002"]
    assert servers(nginx("--workers", "1", "--hosts", "a,b:81,[::1]:82")[1]) == ["a:8080", "b:81", "[::1]:82"]
    assert servers(nginx("--workers", "2", "--hosts", "a,b", "--ports", "5")[1]) == ["a:5", "a:6", "b:5", "b:6"]
    assert servers(nginx()[1]) == servers(nginx("--workers", str(count_workers()))[1])


def test_the_sockets_are_those_that_the_workers_listen_on() -> None:
    """The setting that the head names gives the paths that nginx is told."""
    text = nginx(*SINGLE)[1]
    path = re.search(r"^#     SAMEFLIGHT_UNIX_SOCKET='(.*)' sameflight serve --workers 4$", text, re.MULTILINE)
    assert path is not None
    listening = addresses(Settings(unix_socket=path[1]), 4)
    assert servers(text) == [f"unix:{each.path}" for each in listening]
    on_ports = [f"{each.host}:{each.port}" for each in addresses(Settings(port=9001), 2)]
    assert servers(nginx("--workers", "2", "--ports", "9001")[1]) == on_ports


@pytest.mark.parametrize(
    "words",
    [
        ["--workers", "0"],
        ["--workers", "some"],
        ["--workers", "2000"],
        ["--workers", "4", "--ports", "65533"],
        ["--workers", "2", "--hosts", "a:8080,a:8081"],
        ["--hosts", "a b"],
        ["--hosts", "a:0"],
        ["--affinity", "much"],
        ["--host", "x; return 200"],
        ["--listen", "80 {"],
        ["--sockets", "/run/$uri"],
        ["--tls", "cert.pem", "key'.pem"],
        ["--run-dir", "/tmp/a\nb"],
    ],
    ids=" ".join,
)
def test_what_makes_no_configuration_is_wrong_use(words: list[str]) -> None:
    """Nothing is printed but the reason."""
    code, out, err = nginx(*words)
    assert (code, out) == (2, "")
    assert err.startswith("sameflight nginx: --")


def test_the_command_in_the_head_prints_the_same_again() -> None:
    """Whatever was asked for."""
    words = [*SEVERAL, "--listen", "127.0.0.1:1", "--host", "llm.example", "--tls", "/c.pem", "/k.pem", "--user", "w"]
    words += ["--run-dir", "/tmp/x", "--affinity", "256k", "--any-caller"]
    _, text, _ = nginx(*words)
    head = re.search(r"^#     sameflight nginx (.*)$", text, re.MULTILINE)
    assert head is not None
    assert nginx(*head[1].split())[1] == text
    assert "$http_authorization$" not in text.partition("limits, for those")[0]


def test_the_operations_that_nginx_knows_are_those_that_can_share() -> None:
    """All that the proxy understands, but for agents, whose answers depend on what they remember."""
    pattern = re.compile(rf"/v1/(?:{'|'.join(OPERATIONS)})")
    for method, path, _, _ in routes._UNDERSTOOD:
        assert bool(pattern.fullmatch("/v1" + path)) is (path != "/agents/completions"), (method, path)
    for method, path, route in routes._PASSED:
        assert not pattern.fullmatch("/v1" + path) or (method, path) == ("GET", "/responses"), route.name
    assert pattern.fullmatch("/v1/models/owner/model")
    for path in ("/v1/files", "/v1/uploads/u/parts", "/v1/responses/resp_1", "/v1/chat/completions/c1"):
        assert not pattern.fullmatch(path)


def test_limits_agree_with_those_of_the_workers() -> None:
    """nginx refuses no body that a worker would take, waits longer than any SDK and hangs up before a worker does."""
    text, settings = nginx(*SINGLE)[1], Settings()
    assert f"client_max_body_size {settings.max_body_bytes >> 20}m;" in text
    assert f"large_client_header_buffers 4 {settings.max_header_bytes >> 10}k;" in text
    assert settings.keepalive_s > 60
    assert "        keepalive_timeout 60s;" in text
    assert settings.first_byte_timeout_s < 3_600
    assert "proxy_read_timeout 3600s;" in text


def test_a_layout_says_what_is_wrong_with_it() -> None:
    """For those who build one by hand."""
    with pytest.raises(UnusableError, match="--workers"):
        Layout(0)


LAYOUTS = [SINGLE, SEVERAL, ["--workers", "1", "--ports", "9000"], ["--workers", "1024", "--affinity", "8m"]]


@pytest.mark.parametrize("build", BUILDS)
def test_nginx_takes_every_layout(build: str, tmp_path: Path) -> None:
    """`nginx -t`, with and without TLS, and with the limits that are comments."""
    program = find_nginx(build)
    trustme = pytest.importorskip("trustme")
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    issued = trustme.CA().issue_cert("localhost")
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    tls = ["--tls", str(certificate), str(key)]
    for number, words in enumerate([*LAYOUTS, [*SINGLE, *tls], [*SEVERAL, *tls, "--host", "a.example"]]):
        text = nginx(*words, "--run-dir", str(tmp_path), "--listen", "127.0.0.1:1")[1]
        if number == 0:
            text, uncommented = re.subn(r"^    # (limit_\w+ .*;)$", r"    \1", text, flags=re.MULTILINE)
            assert uncommented == 8
        file = tmp_path / "nginx.conf"
        file.write_text(text, "utf-8")
        command = [program, "-t", "-p", str(tmp_path), "-e", "stderr", "-c", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        assert "[warn]" not in done.stderr


def test_the_linter_finds_nothing(tmp_path: Path) -> None:
    """gixy, over one host, several, and TLS."""
    if find_spec("gixy") is None:
        pytest.skip("needs the gixy-ng package")
    names = []
    for number, words in enumerate([SINGLE, SEVERAL, [*SINGLE, "--tls", "/c.pem", "/k.pem", "--any-caller"]]):
        names.append(str(tmp_path / f"{number}.conf"))
        Path(names[-1]).write_text(nginx(*words)[1], "utf-8")
    command = [sys.executable, "-W", "ignore", "-m", "gixy", *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "No module named gixy.__main__" in done.stderr:
        done = subprocess.run(
            [sys.executable, "-c", "from gixy.cli.main import main; main()", *names],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout
