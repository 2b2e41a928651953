"""wrk as the closed loop, where it is installed: a cheaper load than ours, so that fast peers reach their limit."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from loadtests.drive.spec import Result, Spec, make_body

_SCRIPT = """
local before = [==[{before}]==]
local after = [==[{after}]==]
local number = {first}
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer sk-load"
{headers}
function request()
    local body = before .. string.format("%012d", {number}) .. after
    number = number + 1
    return wrk.format(nil, "/v1/chat/completions", nil, body)
end
function done(summary, latency, requests)
    io.write(string.format("FOUND %d %d %d %d %d %d %d %f %f %f %f\\n", summary.requests, summary.duration,
        summary.errors.connect, summary.errors.read, summary.errors.write, summary.errors.status,
        summary.errors.timeout, latency:percentile(50), latency:percentile(99), latency:percentile(99.9),
        latency.max))
end
"""
_ERRORS = ("no connection", "connection lost", "write failed", "status", "timeout")


def is_usable(spec: Spec) -> bool:
    """Whether wrk is here and can do this load: small whole answers in a closed loop."""
    small = spec.mode == "closed" and not (spec.stream or spec.mix or spec.tokens or spec.models)
    return small and shutil.which("wrk") is not None


def make_command(spec: Spec, seconds: float, script: Path) -> list[str]:
    """Write the script and say how to run it."""
    before, _, after = make_body(0, spec.prompt_bytes, stream=False).partition(b"%012d" % 0)
    lines = [line.partition(":") for line in spec.headers]
    text = _SCRIPT.format(
        before=before.decode(),
        after=after.decode(),
        first=spec.first_number if not spec.distinct else 0,
        number=f"{spec.first_number} + number % {spec.distinct}" if spec.distinct else "number",
        headers="\n".join(f'wrk.headers["{name}"] = "{value.strip()}"' for name, _, value in lines),
    )
    script.write_text(text, "utf-8")
    connections, duration = f"-c{spec.connections}", f"-d{max(1, round(seconds))}s"
    return ["wrk", "-t1", connections, duration, "-s", str(script), f"http://127.0.0.1:{spec.port}"]


def run(spec: Spec, seconds: float, script: Path) -> Result:
    """Drive with wrk for so long. Raises ``RuntimeError`` if it fails."""
    done = subprocess.run(make_command(spec, seconds, script), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"wrk failed: {done.stderr[-500:]}")
    return read(done.stdout)


def read(output: str) -> Result:
    """The line that our script prints; wrk counts microseconds. Raises ``RuntimeError`` if it is not there."""
    found = re.search(r"^FOUND (.+)$", output, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"wrk said nothing: {output[-500:]}")
    requests, duration_us, *rest = [float(each) for each in found[1].split()]
    failures = {name: int(count) for name, count in zip(_ERRORS, rest[:5], strict=True) if count}
    answered = requests - failures.get("status", 0)
    figures = {
        "asked": requests,
        "answered": answered,
        "failed": float(sum(failures.values())),
        "seconds": duration_us / 1e6,
        "requests_per_s": answered / duration_us * 1e6,
    }
    for name, value in zip(("p50", "p99", "p999", "max"), rest[5:], strict=True):
        figures[f"latency_{name}_ms"] = value / 1000
    return Result(figures, failures)
