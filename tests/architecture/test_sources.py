"""The sources as a reader, a linter and a fresh interpreter find them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
MODULES = sorted(
    ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")
    for path in (REPO / "proxy").rglob("*.py")
    if path.name != "__main__.py"
)

# Each module is imported in a fork of an interpreter that holds nothing but the libraries: as fresh as a new process
# and a twentieth of its price. What a module does to the process while it is imported is noted by an audit hook.
_IMPORTER = """
import importlib, json, os, sys, threading, traceback, warnings
for library in ("asyncio", "aiohttp", "aiohttp.web", "aiocache", "aioprometheus", "httptools", "msgspec", "orjson",
                "structlog", "yaml", "argparse", "importlib.metadata", "email.utils", "http.client", "logging",
                "uuid", "tempfile", "concurrent.futures", "urllib.request"):
    importlib.import_module(library)
warnings.simplefilter("error")

class Environment(dict):
    "Tells who of ours looks into it."
    def _note(self):
        frame = sys._getframe(2)
        while frame is not None and frame.f_globals.get("__name__") in ("os", "_collections_abc", __name__):
            frame = frame.f_back
        if frame is not None and frame.f_globals.get("__name__", "").startswith("proxy"):
            deeds.append("reads the environment")
    def get(self, *key):
        self._note()
        return super().get(*key)
    def __getitem__(self, key):
        self._note()
        return super().__getitem__(key)
    def __contains__(self, key):
        self._note()
        return super().__contains__(key)

def watch(event, arguments):
    if event in ("socket.__new__", "subprocess.Popen", "os.system", "os.fork", "_thread.start_new_thread",
                 "os.mkdir", "os.remove", "os.rename", "signal.signal", "os.putenv"):
        deeds.append(event)
    elif event == "open" and isinstance(arguments[0], str) and "__pycache__" not in arguments[0]:
        mode = arguments[1] or ("w" if arguments[2] & (os.O_WRONLY | os.O_RDWR) else "r")
        if set("wax+") & set(mode):
            deeds.append(f"writes {arguments[0]}")

sys.dont_write_bytecode = True
results = {}
for name in sys.argv[1:]:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        deeds = []
        os.environ = Environment(os.environ)
        sys.addaudithook(watch)
        try:
            importlib.import_module(name)
            if threading.active_count() > 1:
                deeds.append("leaves a thread")
            result = sorted(set(deeds))
        except BaseException:
            result = [traceback.format_exc()]
        os.write(writer, json.dumps(result).encode()[:60_000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        results[name] = json.loads(pipe.read())
    os.waitpid(child, 0)
print(json.dumps(results))
"""


def import_alone(modules: list[str]) -> dict[str, list[str]]:
    """What each module did while it was the first of ours to be imported."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", _IMPORTER, *modules],
        cwd=REPO,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, list[str]] = json.loads(ended.stdout.splitlines()[-1])
    return found


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("part", range(4))
def test_every_module_can_be_imported_first_and_does_nothing_but_define(part: int) -> None:
    """No circle among the imports, no warning, and nothing begun: no thread, socket, process or file, and no look at
    the environment, which belongs to those who read settings."""
    modules = MODULES[part::4]
    deeds = import_alone(modules)

    assert set(deeds) == set(modules)
    assert {name: did for name, did in deeds.items() if did} == {}


def test_importing_the_program_itself_runs_nothing() -> None:
    """`proxy.__main__` is imported by the installed command before it is run."""
    assert import_alone(["proxy.__main__"]) == {"proxy.__main__": []}


def run_tool(*words: str) -> tuple[int, str]:
    ended = subprocess.run(
        [sys.executable, "-m", *words], cwd=REPO, capture_output=True, text=True, timeout=170, check=False
    )
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.skipif(find_spec("ruff") is None, reason="ruff is not installed")
def test_ruff_has_nothing_to_say() -> None:
    """Style is no matter of taste or of reviews."""
    code, said = run_tool("ruff", "check", "--quiet", ".")

    assert (code, said) == (0, "")


@pytest.mark.timeout(180)
@pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed")
def test_mypy_is_content_in_its_strict_mode() -> None:
    """Every annotation of `proxy/` is true, as far as a checker can tell."""
    code, said = run_tool("mypy", "--no-error-summary")

    assert (code, said) == (0, "")


# -- words ----------------------------------------------------------------------------------------------------

# Put together from pieces, or this file would be the first to break its own rules.
_MACHINE = [
    "/wo" + r"rk/",
    "/ro" + r"ot/",
    r"/home/" + r"[a-z]",
    "/Us" + r"ers/[A-Za-z]",
    r"/tmp/" + r"[a-z]{2}/",
    r"[A-Z]:" + r"\\\\Users",
]
_REGISTRIES = ["py" + r"pi\.org", "python" + r"hosted\.org", "npm" + r"js\.(?:org|com)"]
_REGISTRIES += [r"--(?:extra-)?ind" + r"ex-url", r"/sim" + r"ple/"]
_WORKPLACE = [
    "sub" + r"-?agents?\b",
    r"\bco-?auth" + r"ored-by\b",
    r"generated (?:by|with) (?:an? )?(?:ai|cl" + r"aude|gpt|llm)\b",
    r"as an ai (?:language )?mo" + r"del",
    r"\btime b" + r"ox\b",
    r"\bmy br" + r"ief\b",
    r"\bthe le" + r"ad commits\b",
]
_TRACES = re.compile("|".join(_MACHINE + _REGISTRIES + _WORKPLACE), re.IGNORECASE)
# What others wrote and what tools wrote.
_FOREIGN = ("LICENSE", "package-lock.json")


def tracked() -> list[Path]:
    """The files of the project: those git knows or would add, or all but the hidden ones where there is no git."""
    git = shutil.which("git")
    if git is not None:
        listed = subprocess.run(
            [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=REPO,
            capture_output=True,
            text=True,
            check=False,
        )
        if listed.returncode == 0 and listed.stdout:
            return [path for name in listed.stdout.split("\0") if name and (path := REPO / name).is_file()]
    hidden = re.compile(r"(?:^|/)(?:\.(?!ci/)|__pycache__|node_modules)|\.egg-info")
    files = (path for path in REPO.rglob("*") if path.is_file())
    return [path for path in files if not hidden.search(path.relative_to(REPO).as_posix())]


def texts() -> dict[str, str]:
    """Name and text of each file that is a text."""
    found = {}
    for path in tracked():
        if path.name not in _FOREIGN:
            try:
                found[path.relative_to(REPO).as_posix()] = path.read_text("utf-8")
            except UnicodeDecodeError:
                continue
    return found


def test_the_tree_is_seen() -> None:
    """The tests below would hold of an empty list."""
    names = texts().keys()

    assert {"README.md", "pyproject.toml", "proxy/app.py", "tests/architecture/test_sources.py"} <= set(names)


def test_no_file_tells_where_or_by_what_it_was_written() -> None:
    """No path of a machine, no address of a registry, no words of a workplace: the sources are the project's own."""
    traces = [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1} {match[0]!r}"
        for name, text in texts().items()
        for match in _TRACES.finditer(text)
    ]

    assert traces == []


def test_no_file_holds_what_looks_like_a_real_credential() -> None:
    """Keys in tests are short or say that they are none; a long random one was pasted."""
    shapes = re.compile(
        r"\b(?:sk-(?:proj-|ant-[a-z0-9]+-)?[A-Za-z0-9]{40,}|ghp_[A-Za-z0-9]{36}|AKIA(?!\w*EXAMPLE)[A-Z0-9]{16}|xox[bp]-[0-9]{10,})\b"
        r"|-----BEGIN (?:RSA |EC )?PRIV" + r"ATE KEY-----"
    )
    found = [f"{name}: {match[0][:12]}…" for name, text in texts().items() for match in shapes.finditer(text)]

    assert found == []
