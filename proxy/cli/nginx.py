"""``sameflight nginx``: print a configuration of nginx for the workers of this machine, or of several.

The text is ``nginx.template`` beside this module; `render` fills its places. The files in ``nginx/`` at the top of
the repository are what it prints for four workers, so that they can be copied without having the program.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Final, TextIO

SOCKET_NAME: Final = "worker-{worker}.sock"
"""Of each worker's Unix socket, counted from 0; the last part of what SAMEFLIGHT_UNIX_SOCKET says."""
DEFAULT_SOCKETS: Final = "/run/sameflight"
DEFAULT_PORT: Final = 8080
MAX_WORKERS: Final = 1024
_KIB_OF_SERVER: Final = 4
"""What nginx takes for each of them in shared memory, and half as much again."""

OPERATIONS: Final = (
    "chat/completions",
    "completions",
    "responses(?:/input_tokens|/compact)?",
    "messages(?:/count_tokens)?",
    "embeddings",
    "moderations",
    "rerank",
    "decisions",
    "images/generations",
    "audio/speech",
    "models(?:/.+)?",
    "fim/completions",
    "chat/moderations",
    "(?:chat/)?classifications",
    "ocr",
)
"""Paths, behind mount and version, of the operations that can ever share a call; regular expressions."""

_TEMPLATE: Final = Path(__file__).with_name("nginx.template")
_PLACE: Final = re.compile(r"\{\{(\w+)\}\}")
_SIZE: Final = re.compile(r"[1-9][0-9]{0,8}[kKmM]?")
# Nothing that ends a word of nginx's grammar, or is a variable in it.
_WORD: Final = re.compile(r"[\w./:@*~+,\[\]-]+")
_HOST: Final = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::(?P<port>[0-9]{1,5}))?")

_CALLER: Final = "$http_authorization$http_x_api_key$http_api_key"

_INTRO_SOCKETS: Final = """\
#
# Copy it to /etc/nginx/nginx.conf. The workers are those of
#
#     SAMEFLIGHT_UNIX_SOCKET='{path}' sameflight serve --workers {workers}
#
# or of as many single processes; those need the same SAMEFLIGHT_KEY_SECRET. nginx's processes must be allowed to
# write to the sockets: run both as one user, or set SAMEFLIGHT_UNIX_SOCKET_MODE to 660 and share a group."""

_INTRO_PORTS: Final = """\
#
# Copy it to /etc/nginx/nginx.conf. The workers are those of
#
#     SAMEFLIGHT_PORT={port} sameflight serve --workers {workers}
#
# or of as many single processes; those need the same SAMEFLIGHT_KEY_SECRET."""

_INTRO_HOSTS: Final = """\
#
# Copy it to /etc/nginx/nginx.conf on every host that is to have an nginx. All of them name the same workers by the
# same names, so that equal requests meet at one worker whichever nginx they come to; that is why a host does not call
# itself 127.0.0.1 here. Where the lists differ for a while, as in a roll-out, a request costs at most one more call
# for each list. The workers listen on addresses that only nginx reaches (they speak plain HTTP), and all have the
# same SAMEFLIGHT_KEY_SECRET."""

_RESOLVER_NOTE: Final = """\
# Names are looked up once, when nginx starts or reloads, and it does not start without an answer. From nginx 1.27.3
# on `resolver ADDRESS;` in http and `resolve` behind a server follow changes; the ring keeps to the names."""

_CONNECT_NEAR: Final = """\
# A socket answers at once or not at all. Nothing is remembered of a refusal (max_fails=0): asking again costs
# microseconds, and a worker that is back has its requests back with the next one."""

_CONNECT_FAR: Final = """\
# A host that is gone does not even refuse. It is not asked again for fail_timeout after a failure (max_fails=1), so
# that one request in five seconds waits for it and not one in three.
proxy_connect_timeout 2s;
# Notice a peer that vanished while nothing was to be sent.
proxy_socket_keepalive on;"""

# Mozilla's intermediate list of 2025, without what needs a file of parameters.
_CIPHERS: Final = ":".join(
    f"ECDHE-{signature}-{cipher}"
    for cipher in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
    for signature in ("ECDSA", "RSA")
)

_TLS: Final = """
# What all current SDKs speak, without what is broken. A certificate with its chain; `nginx -s reload` reads a new
# one. There is no listener without TLS that redirects: by then a credential has been sent in the clear.
ssl_certificate {certificate};
ssl_certificate_key {key};
ssl_protocols TLSv1.2 TLSv1.3;
ssl_ciphers {ciphers};
ssl_prefer_server_ciphers off;
ssl_session_cache shared:sameflight_tls:10m;
ssl_session_timeout 1d;
ssl_session_tickets off;
# 0-RTT data can be replayed, and a replayed POST is paid twice.
ssl_early_data off;
add_header Strict-Transport-Security "max-age=63072000" always;
# HTTP/2, if clients want it (the SDKs do not): `http2 on;` from nginx 1.25.1 on, before it `listen … ssl http2;`."""


class UnusableError(ValueError):
    """What was asked for makes no configuration; the text says why."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a configuration is printed for. Raises ``UnusableError`` for what would not be one."""

    workers: int
    """Of each host."""
    sockets: str = DEFAULT_SOCKETS
    """Directory of the workers' Unix sockets, used if there are neither ``first_port`` nor ``hosts``."""
    first_port: int = 0
    """Workers listen on this port and those after it; 0 for sockets."""
    hosts: tuple[str, ...] = ()
    """``name`` or ``name:first port`` of each host of the ring."""
    listen: str = ""
    """Port or address:port of nginx itself; empty: 80, with TLS 443."""
    host: str = "_"
    """Name of the server."""
    certificate: str = ""
    """File with the certificate chain; empty: no TLS."""
    key: str = ""
    user: str = ""
    """Account of nginx's processes; empty: nginx's own."""
    run_dir: str = ""
    """Where nginx keeps its pid, logs and temporary files; empty: its usual places."""
    affinity: str = "1m"
    """Largest body by which a worker is chosen."""
    any_caller: bool = False
    """Leave the credential out of the choice, for keys that share with their team or tenant."""

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= MAX_WORKERS:
            raise UnusableError(f"--workers: between 1 and {MAX_WORKERS}, not {self.workers}")
        if self.first_port and not 1 <= self.first_port <= 65_536 - self.workers:
            raise UnusableError(f"--ports: {self.workers} ports from {self.first_port} on do not exist")
        if not _SIZE.fullmatch(self.affinity):
            raise UnusableError(f"--affinity: a size such as 1m or 512k, not {self.affinity!r}")
        words = {"--sockets": self.sockets, "--listen": self.listen, "--host": self.host, "--tls": self.certificate,
                 "--tls KEY": self.key, "--user": self.user, "--run-dir": self.run_dir}  # fmt: skip
        for flag, word in words.items():
            if word and not _WORD.fullmatch(word):
                raise UnusableError(f"{flag}: {word!r} has characters that mean something else to nginx")
        self.addresses()

    def addresses(self) -> list[str]:
        """Of every worker, as nginx names them; their order makes no difference to the ring, their names do."""
        numbers = range(self.workers)
        if not self.hosts:
            if self.first_port:
                return [f"127.0.0.1:{self.first_port + number}" for number in numbers]
            return [f"unix:{self.sockets.rstrip('/')}/{SOCKET_NAME.format(worker=number)}" for number in numbers]
        found = []
        for host in self.hosts:
            parts = _HOST.fullmatch(host)
            first = int((parts and parts["port"]) or self.first_port or DEFAULT_PORT)
            if parts is None or not 1 <= first <= 65_536 - self.workers:
                raise UnusableError(f"--hosts: {host!r} is no NAME:PORT with {self.workers} ports from there on")
            found += [f"{parts['name']}:{first + number}" for number in numbers]
        if len(set(found)) < len(found):
            raise UnusableError("--hosts: names a worker twice")
        if len(found) > MAX_WORKERS:
            raise UnusableError(f"--hosts: at most {MAX_WORKERS} workers, not {len(found)}")
        return found


def render(layout: Layout, command: str) -> str:
    """The configuration as text; ``command`` is named in it as its origin."""
    far = bool(layout.hosts)
    health = "max_fails=1 fail_timeout=5s" if far else "max_fails=0"
    servers = [f"server {address} weight=10 {health};" for address in layout.addresses()]
    places = {
        "title": _title(layout),
        "command": command,
        "intro": _intro(layout),
        "user": f"user {layout.user};" if layout.user else "# user sameflight;",
        "places_of_process": _places_of_process(layout.run_dir),
        "places_of_http": indent(_places_of_http(layout.run_dir), " " * 4),
        "caller": "" if layout.any_caller else _CALLER + " ",
        "zone_kib": str(max(512, _KIB_OF_SERVER * len(servers))),
        "servers": indent("\n".join([*([_RESOLVER_NOTE] if _has_names(layout.hosts) else []), *servers]), " " * 8),
        "connecting": indent(_CONNECT_FAR if far else _CONNECT_NEAR, " " * 4),
        "listen": indent(_listen(layout), " " * 8),
        "host": layout.host,
        "tls": indent(_tls(layout), " " * 8),
        "operations": rf"^(?:/(?:openai|anthropic|mistral))?(?:/v1)?(?<operation>/(?:{'|'.join(OPERATIONS)}))$",
        "affinity": layout.affinity,
    }
    text = _PLACE.sub(lambda place: places[place[1]], _TEMPLATE.read_text("utf-8"))
    return re.sub(r"\n{3,}", "\n\n", text)


def _title(layout: Layout) -> str:
    workers = f"{layout.workers} worker{'s' if layout.workers > 1 else ''}"
    where = f"on each of {len(layout.hosts)} hosts, one ring" if layout.hosts else "on one host"
    return f"{workers} {where}{', TLS' if layout.certificate else ''}"


def _intro(layout: Layout) -> str:
    if layout.hosts:
        return _INTRO_HOSTS
    if layout.first_port:
        return _INTRO_PORTS.format(port=layout.first_port, workers=layout.workers)
    return _INTRO_SOCKETS.format(path=f"{layout.sockets.rstrip('/')}/{SOCKET_NAME}", workers=layout.workers)


def _has_names(hosts: Sequence[str]) -> bool:
    return any(re.search(r"[A-Za-z]", host.partition(":")[0]) for host in hosts if not host.startswith("["))


def _listen(layout: Layout) -> str:
    tls = " ssl" if layout.certificate else ""
    if layout.listen:
        return f"listen {layout.listen}{tls} backlog=4096;"
    port = 443 if layout.certificate else 80
    return f"listen {port}{tls} backlog=4096;\n# listen [::]:{port}{tls} backlog=4096;  # where there is IPv6"


def _tls(layout: Layout) -> str:
    if not layout.certificate:
        return ""
    return _TLS.format(certificate=layout.certificate, key=layout.key, ciphers=_CIPHERS)


def _places_of_process(run_dir: str) -> str:
    if run_dir:
        return f"pid {run_dir}/nginx.pid;\nerror_log {run_dir}/error.log error;"
    return "pid /run/nginx.pid;\nerror_log /var/log/nginx/error.log error;"


def _places_of_http(run_dir: str) -> str:
    if not run_dir:
        return "access_log /var/log/nginx/access.log sameflight;"
    # All five, because nginx makes all five at its start, whether it needs them or not.
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return "\n".join(
        [f"access_log {run_dir}/access.log sameflight;", *(f"{kind}_temp_path {run_dir}/{kind};" for kind in kinds)]
    )


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "nginx",
        help="print a configuration of nginx for a number of workers",
        description="Prints a complete nginx.conf that sends equal requests to one worker, so that they share one "
        "upstream call whichever of the workers' processes they would have come to. Workers listen on Unix sockets "
        f"(SAMEFLIGHT_UNIX_SOCKET='{DEFAULT_SOCKETS}/{SOCKET_NAME}' sameflight serve --workers 4), on ports of this "
        "host, or on ports of several. All of them need the same SAMEFLIGHT_KEY_SECRET.",
    )
    parser.add_argument(
        "--workers", default="auto", metavar="N", help="workers on each host, or auto: as many as serve takes (auto)"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--sockets", default=DEFAULT_SOCKETS, metavar="DIR", help="of the workers (%(default)s)")
    where.add_argument("--ports", type=int, default=0, metavar="FIRST", help="workers listen on ports, not sockets")
    parser.add_argument(
        "--hosts",
        default="",
        metavar="A:8080,B:8080",
        help="hosts of one ring, each with its first worker's port; the same list for every host's nginx",
    )
    parser.add_argument("--listen", default="", metavar="ADDRESS", help="port or address:port of nginx (80 or 443)")
    parser.add_argument("--host", default="_", metavar="NAME", help="name of the server (any)")
    parser.add_argument("--tls", nargs=2, default=("", ""), metavar=("CERT", "KEY"), help="PEM files: serve HTTPS")
    parser.add_argument("--user", default="", help="account of nginx's processes")
    parser.add_argument("--run-dir", default="", metavar="DIR", help="pid, logs and temporary files go there")
    parser.add_argument(
        "--affinity", default="1m", metavar="SIZE", help="largest body by which a worker is chosen (%(default)s)"
    )
    parser.add_argument(
        "--any-caller",
        action="store_true",
        help="choose without the credential, for virtual keys that share with their team or tenant",
    )
    parser.set_defaults(run=run, origin=None)


def run(args: argparse.Namespace, out: TextIO | None = None, err: TextIO | None = None) -> int:
    """Print. 0, or 2 for what makes no configuration."""
    out, err = out or sys.stdout, err or sys.stderr
    try:
        layout = Layout(
            workers=_read_workers(args.workers),
            sockets=args.sockets,
            first_port=args.ports,
            hosts=tuple(host.strip() for host in args.hosts.split(",") if host.strip()),
            listen=args.listen,
            host=args.host,
            certificate=args.tls[0],
            key=args.tls[1],
            user=args.user,
            run_dir=args.run_dir.rstrip("/"),
            affinity=args.affinity,
            any_caller=args.any_caller,
        )
    except UnusableError as error:
        print(f"sameflight nginx: {error}", file=err)
        return 2
    out.write(render(layout, describe(layout)))
    return 0


def _read_workers(text: str) -> int:
    if text == "auto":
        from proxy.workers.cpus import count_workers

        return count_workers()
    if not text.isdecimal():
        raise UnusableError(f"--workers: auto or a number, not {text!r}")
    return int(text)


def describe(layout: Layout) -> str:
    """The command that prints a configuration for ``layout``."""
    words = ["sameflight", "nginx", "--workers", str(layout.workers)]
    given = {"--sockets": "" if layout.sockets == DEFAULT_SOCKETS else layout.sockets,
             "--ports": str(layout.first_port or ""), "--hosts": ",".join(layout.hosts), "--listen": layout.listen,
             "--host": "" if layout.host == "_" else layout.host, "--user": layout.user, "--run-dir": layout.run_dir,
             "--affinity": "" if layout.affinity == "1m" else layout.affinity}  # fmt: skip
    words += [word for flag, value in given.items() if value for word in (flag, value)]
    words += ["--tls", layout.certificate, layout.key] if layout.certificate else []
    return shlex.join([*words, *(["--any-caller"] if layout.any_caller else [])])
