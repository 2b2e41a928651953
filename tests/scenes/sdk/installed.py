"""SDKs that are no dependency of the project, installed once into a directory outside the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

INSTALL_S = 240


def cached(name: str, install: Callable[[Path], list[str]]) -> Path:
    """The directory that ``install`` fills by the command it returns, kept for later runs; skips without a registry.

    It is filled under another name and moved when whole, so that neither an interrupted run nor a second one at the
    same time leaves half of it behind.
    """
    root = Path(tempfile.gettempdir()) / f"sameflight-sdks-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    target = root / name
    if target.is_dir():
        return target
    making = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=root))
    try:
        command = install(making)
        made = subprocess.run(command, cwd=making, capture_output=True, text=True, timeout=INSTALL_S, check=False)
        if made.returncode:
            lines = (made.stderr or made.stdout).strip().splitlines() or ["no message"]
            reason = next((line for line in lines if "error" in line.lower()), lines[-1])
            pytest.skip(f"{name} cannot be installed (is the registry out of reach?): {reason}")
        try:
            making.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    except subprocess.TimeoutExpired:
        pytest.skip(f"{name} was not installed within {INSTALL_S} s")
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return target


def python_packages(*requirements: str) -> Path:
    """A directory for ``PYTHONPATH`` with the requirements and all they need."""
    version = f"py{sys.version_info[0]}{sys.version_info[1]}"

    def install(target: Path) -> list[str]:
        quiet = ["-q", "--disable-pip-version-check", "--no-input"]
        return [sys.executable, "-m", "pip", "install", *quiet, "--target", str(target), *requirements]

    return cached("-".join(requirements).replace("==", "-") + f"-{version}", install)


def node_packages(package_json: Path) -> Path:
    """A directory with ``node_modules`` as the given ``package.json`` asks for."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    text = package_json.read_bytes()

    def install(target: Path) -> list[str]:
        (target / "package.json").write_bytes(text)
        return [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]

    return cached(f"node-{sha256(text).hexdigest()[:12]}", install)
