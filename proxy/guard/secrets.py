"""Secrets of known shapes: keys of vendors, tokens, private keys, passwords in addresses.

Each shape begins with something that nothing else begins with, so a text without any is passed over in a microsecond.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from proxy.guard.base import Scanner
from proxy.guard.personal import EDGE, ESCAPE_BYTES
from proxy.linear import Expression

MAX_SECRET_BYTES: Final = 8_192
"""What is longer is cut there: no key is, and a stream is not held back any further."""

_WORD: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"


class Shape(NamedTuple):
    kind: str
    needs: bytes
    pattern: str
    extra: bytes = b""
    """What it may have in it beside letters, digits, ``_`` and ``-``."""
    edge: str = EDGE


_SHAPES: Final = (
    Shape("anthropic_key", b"sk-ant-", "sk-ant-[A-Za-z0-9_-]{20,}"),
    Shape("openai_key", b"sk-", "sk-(?:proj-|svcacct-|admin-|or-v1-)?[A-Za-z0-9_-]{20,}"),
    Shape("aws_key", b"A", "(?:AKIA|ASIA|AROA|AIDA|ABIA|ACCA)[A-Z2-7]{16}"),
    Shape("github_token", b"gh", "gh[pousr]_[A-Za-z0-9]{36,}"),
    Shape("github_token", b"github_pat_", "github_pat_[A-Za-z0-9_]{22,}"),
    Shape("gitlab_token", b"glpat-", "glpat-[A-Za-z0-9_-]{20,}"),
    Shape("slack_token", b"xox", "xox[abeprs]-[A-Za-z0-9-]{10,}"),
    Shape("slack_token", b"xapp-", "xapp-[0-9]-[A-Za-z0-9-]{20,}"),
    Shape("slack_webhook", b"hooks.slack.com", "hooks.slack.com/(?:services|workflows)/[A-Za-z0-9/_-]{20,}", b"./"),
    Shape("google_key", b"AIza", "AIza[A-Za-z0-9_-]{35}"),
    Shape("google_token", b"ya29.", r"ya29\.[A-Za-z0-9_-]{20,}", b"."),
    Shape("google_secret", b"GOCSPX-", "GOCSPX-[A-Za-z0-9_-]{20,}"),
    Shape("stripe_key", b"k_", "[rs]k_(?:live|test)_[A-Za-z0-9]{16,}"),
    Shape("stripe_secret", b"whsec_", "whsec_[A-Za-z0-9+/=]{24,}", b"+/="),
    Shape("huggingface_token", b"hf_", "hf_[A-Za-z0-9]{30,}"),
    Shape("npm_token", b"npm_", "npm_[A-Za-z0-9]{36}"),
    Shape("pypi_token", b"pypi-Ag", "pypi-Ag[A-Za-z0-9_-]{50,}"),
    Shape("sendgrid_key", b"SG.", r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}", b"."),
    Shape("twilio_key", b"SK", "SK[0-9a-f]{32}"),
    Shape("digitalocean_token", b"_v1_", "do[opr]_v1_[0-9a-f]{64}"),
    Shape("shopify_token", b"shp", "shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"),
    Shape("telegram_token", b":AA", "[0-9]{8,10}:AA[A-Za-z0-9_-]{33}", b":"),
    Shape("azure_key", b"AccountKey=", "AccountKey=[A-Za-z0-9+/]{80,}={0,2}", b"+/="),
    Shape("groq_key", b"gsk_", "gsk_[A-Za-z0-9]{40,}"),
    Shape("xai_key", b"xai-", "xai-[A-Za-z0-9]{40,}"),
    Shape("vault_token", b"hvs.", r"hvs\.[A-Za-z0-9_-]{24,}", b"."),
    Shape("jwt", b"eyJ", r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{10,}", b"."),
    Shape(
        "url_password", b"://", r"[A-Za-z][A-Za-z0-9+.-]{1,20}://[!#-&(-.0-9;=?A-\[\]-~]{0,128}:[!#-&(-.0-9;=?A-\[\]-~]{3,256}@",
    ),
)  # fmt: skip

KINDS: Final = (*dict.fromkeys(shape.kind for shape in _SHAPES), "aws_secret", "private_key")


class Secret(Scanner):
    """Whatever has one shape; it reaches as far as its characters do."""

    __slots__ = ("_expression", "_kind")

    def __init__(self, shape: Shape) -> None:
        alphabet = b"" if shape.kind == "url_password" else _WORD + shape.extra + ESCAPE_BYTES
        span_bytes = 512 if shape.kind == "url_password" else MAX_SECRET_BYTES
        super().__init__(span_bytes, alphabet=alphabet, needs=shape.needs)
        self._kind = shape.kind
        self._expression = Expression(f"{shape.edge}(?:{shape.pattern})")

    def scan(self, text: bytes, at: int) -> Iterator[tuple[str, int, int]]:
        for start, stop in self._expression.find_from(text, at):
            first = start + 2 * (text[start] == 92)  # behind the escape before it
            yield self._kind, first, min(stop, first + self.span_bytes - 8)


class Address(Secret):
    """An address with a password in it."""

    __slots__ = ()

    def open_from(self, text: bytes) -> int:
        """It ends where the next white space is."""
        tail = text[-self.span_bytes :]
        last = max(tail.rfind(b" "), tail.rfind(b"\n"), tail.rfind(b'"'))
        return len(text) - len(tail) + last + 1


class AwsSecret(Scanner):
    """Forty characters that nothing tells but the name before them."""

    __slots__ = ("_expression",)

    _PATTERN: Final = (
        EDGE + r"""(?i:(?:aws_?)?secret_?access_?key)["' \t]{0,4}[:=]["' \t]{0,4}[A-Za-z0-9/+]{40}"""
    )
    _ALPHABET: Final = _WORD + b"\"' \t:=/+\\"
    _NAME_BYTES: Final = 24

    def __init__(self) -> None:
        super().__init__(96, alphabet=self._ALPHABET)
        self._expression = Expression(self._PATTERN)

    def scan(self, text: bytes, at: int) -> Iterator[tuple[str, int, int]]:
        if b"ccess" not in text and b"CCESS" not in text:
            return
        for start, stop in self._expression.find_from(text, at):
            yield "aws_secret", start + 2 * (text[start] == 92), stop

    def open_from(self, text: bytes) -> int:
        """Where its name may have begun: behind the last white space, or further back if the name was said."""
        run = super().open_from(text)
        tail = text[run:].lower()
        named = tail.find(b"secret")
        if named >= 0:
            return max(run, run + named - self._NAME_BYTES)
        return max(run, len(text) - self._NAME_BYTES, text.rfind(b" ") + 1)


class PrivateKey(Scanner):
    """A block of PEM, from its first line to its last; one that breaks off, as far as its lines are full."""

    __slots__ = ("_block",)

    _KIND: Final = "[A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
    _LINES: Final = r"(?:(?:\s|\\[nr])*[A-Za-z0-9+/=]{24,})*"
    _BLOCK: Final = (
        rf"-----BEGIN {_KIND}(?:[A-Za-z0-9+/=:,.()\s\\-]*?-----END {_KIND}|{_LINES})"
    )
    _BEGIN: Final = b"-----BEGIN"
    _HEAD_BYTES: Final = 80
    _HEAD_ALPHABET: Final = b"-ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 "

    def __init__(self) -> None:
        super().__init__(MAX_SECRET_BYTES, needs=self._BEGIN)
        self._block = Expression(self._BLOCK)

    def scan(self, text: bytes, at: int) -> Iterator[tuple[str, int, int]]:
        for start, stop in self._block.find_from(text, at):
            yield "private_key", start, min(stop, start + self.span_bytes - 8)

    def open_from(self, text: bytes) -> int:
        """A block is open until its last line ends; a beginning of one, as long as it may still become one."""
        earliest = max(0, len(text) - self.span_bytes)
        dashes = text.find(b"-", max(earliest, len(text) - self._HEAD_BYTES, len(text.rstrip(self._HEAD_ALPHABET))))
        if dashes < 0:
            dashes = len(text)
        begin = text.find(self._BEGIN, earliest)
        while begin >= 0:
            end = text.find(b"PRIVATE KEY", text.find(b"-----END", begin) + 1 or len(text))
            if b"PRIVATE KEY" in text[begin : begin + self._HEAD_BYTES] and (end < 0 or len(text) < end + 22):
                return min(begin, dashes)
            begin = text.find(self._BEGIN, begin + 1)
        return dashes


def make_scanners(which: tuple[str, ...]) -> list[Scanner]:
    """Of these kinds; of all if there are none."""
    wanted = which or KINDS
    scanners: list[Scanner] = [
        Address(shape) if shape.kind == "url_password" else Secret(shape) for shape in _SHAPES if shape.kind in wanted
    ]
    if "aws_secret" in wanted:
        scanners.append(AwsSecret())
    if "private_key" in wanted:
        scanners.append(PrivateKey())
    return scanners
