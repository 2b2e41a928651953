"""Portkey's gateway on Node, installed with npm; only on demand (``--with portkey``)."""

from __future__ import annotations

import shutil
import subprocess

from loadtests.peers.base import Running, Setup, UnavailableError
from loadtests.peers.litellm import cache_folder
from loadtests.process import Child, free_port

VERSION = "1.15.2"
_START_S = 60.0


def start(setup: Setup) -> Running:
    """Raises ``UnavailableError`` without Node or if it cannot be installed."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise UnavailableError("portkey needs node and npm")
    folder = cache_folder() / f"portkey-{VERSION}"
    program = folder / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        install = [npm, "install", "--prefix", str(folder), "--no-fund", f"@portkey-ai/gateway@{VERSION}"]
        try:
            subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            raise UnavailableError(f"portkey {VERSION} could not be installed: {error}") from None
    port = free_port()
    env = {"TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"}
    if setup.ca_file:
        env["NODE_EXTRA_CA_CERTS"] = setup.ca_file
    command = [node, str(program), "--headless", f"--port={port}"]
    child = Child("portkey", command, setup.core, setup.folder / "portkey.log", env)
    child.start()
    try:
        child.wait_for(port, _START_S)
    except RuntimeError:
        child.stop()
        raise
    headers = ("x-portkey-provider: openai", f"x-portkey-custom-host: {setup.upstream_url}/v1")
    return Running("portkey", port, child, headers=headers)
