"""The path of a request, compiled: the modules that every request passes through, made into native code by mypyc.

    python deploy/docker/compile.py                      the package of this checkout, in place
    python deploy/docker/compile.py --package DIR        an installed one, such as …/site-packages/proxy
    python deploy/docker/compile.py --check              say whether it is compiled, and from these sources
    python deploy/docker/compile.py --remove             plain Python again

The image is built with it. Everywhere else plain Python is the default: the sources stay where they are and mean the
same, only slower. Whoever edits them afterwards compiles again or removes what was compiled, as an interpreter
prefers the native module to its source; ``--check`` finds that out.

Needs mypy (which brings mypyc), setuptools and a C compiler while it works; what it makes needs none of them. All is
made and tried in a folder of its own before the first file is put into the package, and the library without which
none of it can be loaded is put there last: a package is compiled as a whole or not at all.

Exit codes: 0 success, 1 failure, 2 wrong use.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

MODULES: Final = (
    *("work", "exchange", "clearance", "reading", "admission", "pipeline", "production", "intake", "guarded_intake"),
    *("books", "usage_row", "access_line"),
    *("protocol.headers", "protocol.answer", "protocol.call", "protocol.edit", "protocol.encoding"),
    *("protocol.fingerprint", "protocol.sse", "protocol.usage", "protocol.ask_usage", "protocol.missing"),
    *("protocol.faults",),
    *("policy.caching", "policy.sharing", "policy.estimate", "policy.routed", "policy.planner"),
    *("accounting.report", "accounting.usage", "accounting.segment", "accounting.spool"),
    *("telemetry.line", "telemetry.tallies", "telemetry.series", "telemetry.log"),
    *("flight.tape", "flight.subscription", "flight.flight", "flight.table", "flight.runner"),
    *("cache.ring", "cache.hot", "cache.users", "cache.recording"),
    *("access.limits_reservation", "access.limits"),
    *("upstream.body", "upstream.compose", "upstream.wire", "upstream.pool", "upstream.client", "upstream.outbound"),
    *("pressure.gate", "pressure.turns"),
    *("edge.respond", "edge.relay", "edge.lane"),
)
"""What is compiled, together: a call from one of these into another is a call in C."""

LEFT_OUT: Final = {
    "clock": "its clock is two functions of the interpreter's, and is held still by a class of the tests",
    "edge.heads": "its heads are weakly referenced, which native classes are not",
    "edge.connection": "its class derives from aiohttp's protocol",
    "errors": "its class is an exception with slots, raised and caught by interpreted code as well",
    "protocol.message": "its headers derive from the built-in list",
    "protocol.routes": "enumerations and data classes, read from tables: nothing to gain",
    "policy.plan": "data classes: their constructors are generated, and interpreted in either case",
    "policy.policies": "of its work all is done once per head of a caller",
    "upstream.sending": "it awaits in a `finally`, where compiled coroutines forget what they were about to raise",
    "telemetry.sink": "a thread of its own, off the request's path",
}
"""Modules that requests pass through as well, and why they stay as they are."""

_LIBRARY: Final = "compiled__mypyc"
"""Holds the code of all modules; what stands beside each source is a stub that loads it."""
_RECORD: Final = "compiled.json"
_GROUP: Final = "proxy.compiled"

_CHECKER: Final = """\
[mypy]
ignore_missing_imports = True
follow_imports = silent
check_untyped_defs = True
"""

# Runs in the folder of the copy. One process of the C compiler for each processor: that is most of the time.
_BUILD: Final = """\
import os, sys
from concurrent.futures import ThreadPoolExecutor
from mypyc.build import mypycify
from setuptools import setup
from setuptools.command.build_ext import build_ext

group, level, target, *files = sys.argv[1:]

class Build(build_ext):
    def build_extensions(self):
        one_after_the_other = self.compiler.compile
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            def compile(sources, *arguments, **options):
                parts = pool.map(lambda source: one_after_the_other([source], *arguments, **options), sources)
                return [made for part in parts for made in part]
            self.compiler.compile = compile
            super().build_extensions()

options = ["--config-file=mypy.ini", "--python-executable=" + target]
extensions = mypycify([*options, *files], opt_level=level, debug_level="0", multi_file=True, group_name=group)
for extension in extensions:
    extension.include_dirs.append(os.path.join("build", *group.split(".")[:-1]))
setup(name="sameflight", packages=[], ext_modules=extensions, cmdclass={"build_ext": Build},
      script_args=["--quiet", "build_ext", "--inplace"])
"""

# Runs under the interpreter that the package is for, with the copy in front of everything.
_TRY: Final = """\
import importlib, sys
suffix, *modules = sys.argv[1:]
for name in modules:
    module = importlib.import_module(name)
    if not module.__file__.endswith(suffix):
        sys.exit(f"{name} was loaded from {module.__file__}")
importlib.import_module("proxy.app")
"""


class FailedError(Exception):
    """It cannot be done; the text says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for."""
    options = _parser().parse_args(arguments)
    package: Path = options.package.resolve()
    if not (package / "__main__.py").is_file() or package.name != "proxy":
        print(f"compile: {package} is not the package `proxy`", file=sys.stderr)
        return 2
    try:
        if options.check:
            print(_check(package))
        elif options.remove:
            print(f"{package}: {_remove(package)} files removed, plain Python now")
        else:
            _compile(package, options.python, options.quick)
    except (FailedError, OSError) as failure:
        print(f"compile: {failure}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="compile.py", description="Compile the path of a request with mypyc, in place.", allow_abbrev=False
    )
    beside = Path(__file__).parents[2] / "proxy"
    parser.add_argument(
        "--package", type=Path, default=beside, metavar="DIR", help="the package (default: %(default)s)"
    )
    parser.add_argument(
        "--python",
        default=sys.executable,
        metavar="FILE",
        help="the interpreter that will run it, with its libraries",
    )
    parser.add_argument("--quick", action="store_true", help="without the C compiler's optimisation, to try it out")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--check", action="store_true", help="say whether it is compiled from the sources that are there"
    )
    what.add_argument("--remove", action="store_true", help="make it plain Python again")
    return parser


# -- what a package is ----------------------------------------------------------------------------------------------


def _check(package: Path) -> str:
    """What to say of a package. Raises ``FailedError`` where what was compiled is not whole or not of its sources."""
    made, record = _made(package), package / _RECORD
    if not made and not record.exists():
        return f"{package}: plain Python"
    if not record.exists():
        raise FailedError(f"{package} is compiled in part: compile again, or --remove")
    known = json.loads(record.read_text())
    changed = sorted(name for name, digest in known["sources"].items() if digest != _digest(package, name))
    if changed:
        raise FailedError(f"changed since they were compiled: {', '.join(changed)}: compile again, or --remove")
    missing = sorted(set(known["files"]) - {str(path.relative_to(package)) for path in made})
    if missing:
        raise FailedError(f"missing of what was compiled: {', '.join(missing)}: compile again, or --remove")
    return f"{package}: {len(known['sources'])} modules compiled for {known['suffix']}"


def _made(package: Path) -> list[Path]:
    """The native modules in ``package``, for whichever interpreter; the library first, as it is the first to go."""
    names = {_LIBRARY, *(name.rpartition(".")[2] for name in MODULES)}
    found = [path for kind in ("*.so", "*.pyd") for path in package.rglob(kind)]
    ours = [path for path in found if path.name.partition(".")[0] in names]
    return sorted(ours, key=lambda path: (not path.name.startswith(_LIBRARY), path))


def _remove(package: Path) -> int:
    made = _made(package)
    for path in made:
        path.unlink()
    (package / _RECORD).unlink(missing_ok=True)
    return len(made)


def _digest(package: Path, module: str) -> str:
    source = _source(package, module)
    return hashlib.sha256(source.read_bytes()).hexdigest() if source.is_file() else ""


def _source(package: Path, module: str) -> Path:
    return package.joinpath(*module.split(".")).with_suffix(".py")


# -- compiling ------------------------------------------------------------------------------------------------------


def _compile(package: Path, python: str, quick: bool) -> None:
    suffix = _suffix(python)
    _demand_tools(package)
    began_at = time.monotonic()
    # Beside the package: what is made gets there by renaming, which cannot fail half way through a file.
    with tempfile.TemporaryDirectory(prefix=".compiling-", dir=package.parent) as folder:
        copy = Path(folder, "proxy")
        shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", _RECORD))
        _build(Path(folder), python, quick)
        made = [path.relative_to(copy) for path in _made(copy) if path.name.endswith(suffix)]
        if len(made) != len(MODULES) + 1:
            raise FailedError(f"{len(made)} files were made where {len(MODULES) + 1} were expected")
        _try(Path(folder), python, suffix)
        if changed := [name for name in MODULES if _digest(copy, name) != _digest(package, name)]:
            raise FailedError(f"changed while they were compiled: {', '.join(changed)}")
        record = {
            "suffix": suffix,
            "files": [str(path) for path in made],
            "sources": {name: _digest(copy, name) for name in MODULES},
        }
        (copy / _RECORD).write_text(json.dumps(record, indent=1) + "\n")
        _put(copy, package, made)
    size_bytes = sum((package / path).stat().st_size for path in made)
    spent_s = time.monotonic() - began_at
    print(
        f"{package}: {len(MODULES)} modules compiled in {spent_s:.0f} s, {size_bytes / 2**20:.1f} MiB, for {suffix}"
    )


def _suffix(python: str) -> str:
    """How native modules of ``python`` end. Raises ``FailedError`` where it is of another kind than this interpreter,
    for which the code is made."""
    ask = "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"
    ours, theirs = (_run([which, "-c", ask], Path.cwd()).strip() for which in (sys.executable, python))
    if ours != theirs:
        raise FailedError(f"{python} wants {theirs}, and {sys.executable} makes {ours}")
    return ours


def _demand_tools(package: Path) -> None:
    for name in ("mypyc", "setuptools"):
        if find_spec(name) is None:
            raise FailedError(f"{name} is not installed for {sys.executable}: pip install mypy setuptools")
    compiler = os.environ.get("CC", "cc").split()[0]
    if shutil.which(compiler) is None and shutil.which("gcc") is None:
        raise FailedError("there is no C compiler: install gcc and the headers of the C library, or name one in CC")
    if missing := [name for name in MODULES if not _source(package, name).is_file()]:
        raise FailedError(f"not in {package}: {', '.join(missing)}")


def _build(folder: Path, python: str, quick: bool) -> None:
    (folder / "mypy.ini").write_text(_CHECKER)
    files = [str(_source(Path("proxy"), name)) for name in MODULES]
    _run([sys.executable, "-c", _BUILD, _GROUP, "0" if quick else "2", python, *files], folder)


def _try(folder: Path, python: str, suffix: str) -> None:
    """Load every compiled module, and the rest of a proxy around them."""
    _run([python, "-c", _TRY, suffix, *(f"proxy.{name}" for name in MODULES)], folder)


def _run(command: list[str], folder: Path) -> str:
    """What ``command`` printed. Raises ``FailedError`` with the end of it if it went wrong."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, check=False)  # noqa: S603
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        errors = [line for line in said if ": error: " in line]
        raise FailedError("\n".join(["compiling failed", *(errors or said)[-40:]]))
    return done.stdout


def _put(copy: Path, package: Path, made: Sequence[Path]) -> None:
    """Move what was made into the package: all of it, or nothing. Without the library nothing of it can be loaded, so
    a machine that loses power meanwhile leaves a package that fails at once rather than one that is half of each."""
    _remove(package)
    library, *stubs = made
    try:
        for path in (*stubs, Path(_RECORD), library):
            os.replace(copy / path, package / path)
    except BaseException:
        _remove(package)
        raise


if __name__ == "__main__":
    sys.exit(main())
