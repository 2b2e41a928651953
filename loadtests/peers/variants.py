"""This proxy in other forms than it comes in; only on demand (``--with aiohttp-lane``, ``--with compiled``)."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from loadtests.peers.base import Running, Setup, UnavailableError
from loadtests.peers.litellm import cache_folder
from loadtests.peers.sameflight import start_as
from loadtests.process import REPO, run_python

_RUN = "import sys; sys.path.insert(0, sys.argv.pop(1)); from proxy.__main__ import main; sys.exit(main())"


def start_aiohttp_lane(setup: Setup) -> Running:
    """Every request goes through aiohttp's server."""
    return start_as("aiohttp-lane", run_python("proxy"), setup, {"SAMEFLIGHT_FAST_LANE": "false"})


def start_compiled(setup: Setup) -> Running:
    """As the image runs it: the path of a request as native code. Raises ``UnavailableError`` if it cannot be
    compiled here."""
    return start_as("compiled", [sys.executable, "-P", "-c", _RUN, str(_compile())], setup, {"PYTHONPATH": ""})


def _compile() -> Path:
    """A folder with these sources, compiled; made once for each version of them, which takes two minutes."""
    compiler = REPO / "deploy" / "docker" / "compile.py"
    sources = [compiler, *sorted((REPO / "proxy").rglob("*.py"))]
    digest = hashlib.sha256(b"".join(each.read_bytes() for each in sources)).hexdigest()[:16]
    folder = cache_folder() / f"compiled-{digest}"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(REPO / "proxy", folder / "proxy", ignore=shutil.ignore_patterns("__pycache__"))
        command = [sys.executable, str(compiler), "--package", str(folder / "proxy")]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise UnavailableError(f"it could not be compiled: {error}") from None
        (folder / "done").touch()
    return folder
