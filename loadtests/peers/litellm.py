"""LiteLLM's proxy with one worker, in a virtual environment of its own; only on demand (``--with litellm``)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from loadtests.peers.base import Running, Setup, UnavailableError
from loadtests.process import Child, free_port

VERSION = "1.106.2"
"""Fixed, because the figures are about a version, and because a package of this reach is not taken unseen."""
_START_S = 120.0


def start(setup: Setup) -> Running:
    """Raises ``UnavailableError`` if it cannot be installed."""
    program = _install() / "bin" / "litellm"
    port = free_port()
    entry = {"model": "openai/gpt-4o-mini", "api_base": setup.upstream_url + "/v1", "api_key": "sk-load"}
    settings = {
        "model_list": [{"model_name": "gpt-4o-mini", "litellm_params": entry}],
        "litellm_settings": {"num_retries": 0, "telemetry": False, "set_verbose": False},
    }
    configuration = setup.folder / "litellm.yaml"
    configuration.write_text(json.dumps(settings), "utf-8")  # JSON is YAML
    command = [str(program), "--config", str(configuration), "--host", "127.0.0.1", "--port", str(port)]
    env = {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    env["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"  # on loopback; no key is checked, for speed
    if setup.ca_file:
        env["SSL_CERT_FILE"] = setup.ca_file
    child = Child("litellm", [*command, "--num_workers", "1"], setup.core, setup.folder / "litellm.log", env)
    child.start()
    try:
        child.wait_for(port, _START_S)
    except RuntimeError as error:
        child.stop()
        raise UnavailableError(f"it does not start: {str(error)[-300:]}") from None
    return Running("litellm", port, child)


def cache_folder() -> Path:
    """Where peers on demand are installed, outside the checkout."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "sameflight-loadtests"


def _install() -> Path:
    venv = cache_folder() / f"litellm-{VERSION}"
    if not (venv / "bin" / "litellm").exists():
        try:
            subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
            pip = [str(venv / "bin" / "pip"), "install", "--quiet", f"litellm[proxy]=={VERSION}"]
            subprocess.run(pip, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise UnavailableError(f"litellm {VERSION} could not be installed: {error}") from None
    return venv
