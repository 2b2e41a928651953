"""``python -m loadtests.micro``: time the parts, judge the flat lines, write JSON and Markdown."""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from loadtests import machine
from loadtests.micro.flat import MOST, Line, make_lines
from loadtests.micro.parts import PARTS, Part, reference
from loadtests.micro.timing import compare

_RESULTS = Path(__file__).parents[1] / "results"


def main(arguments: list[str]) -> int:
    """1 if a line is not flat, or if something could not be measured under ``--strict``."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.micro", description="Costs of the parts of the hot path, and whether they grow."
    )
    parser.add_argument("--quick", action="store_true", help="10^5 instead of 10^6 cache entries, shorter runs")
    parser.add_argument("--only", choices=("parts", "flat"), help="one of the two tables")
    parser.add_argument("--strict", action="store_true", help="exit code 1 if something could not be measured")
    parser.add_argument("--out", type=Path, help="folder (default: loadtests/results/<date>-<commit>)")
    args = parser.parse_args(arguments)
    turn_s = 0.004 if args.quick else 0.02
    parts = [] if args.only == "flat" else [_attempt(part.name, partial(_time, part, turn_s)) for part in PARTS]
    lines = []
    if args.only != "parts":
        lines = [_attempt(line.name, partial(_judge, line, turn_s)) for line in make_lines(args.quick)]
    text = render(parts, lines)
    print(text)
    folder: Path = args.out or _RESULTS / f"{time.strftime('%Y-%m-%d')}-{machine.describe_revision().rstrip('+')}"
    folder.mkdir(parents=True, exist_ok=True)
    about = {"machine": machine.describe_machine(), "versions": machine.describe_versions()}
    (folder / "micro.json").write_text(json.dumps({**about, "parts": parts, "flat": lines}, indent=1), "utf-8")
    (folder / "micro.md").write_text(text, "utf-8")
    grown = [line for line in lines if line.get("verdict") == "grows"]
    missing = [each for each in (*parts, *lines) if "error" in each]
    return 1 if grown or (args.strict and missing) else 0


def _attempt(name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        found = {"name": name, **measure()}
    except Exception as error:  # noqa: BLE001 - one part that has changed must not hide the others
        found = {"name": name, "error": f"{type(error).__name__}: {error}"}
    gc.collect()
    print(".", end="", flush=True, file=sys.stderr)
    return found


def _time(part: Part, turn_s: float) -> dict[str, Any]:
    with ExitStack() as stack:
        return compare(part.make(stack), reference(), turn_s)._asdict()


def _judge(line: Line, turn_s: float) -> dict[str, Any]:
    ratio = compare(line.make(line.many), line.make(line.few), turn_s)
    verdict = ("flat" if ratio.median <= MOST else "grows") if line.judged else ""
    return {"few": line.few, "many": line.many, **ratio._asdict(), "verdict": verdict}


def render(parts: list[dict[str, Any]], lines: list[dict[str, Any]]) -> str:
    """Both tables as Markdown."""
    text = ["# Costs of single parts\n"]
    if parts:
        text.append("Multiples of one `orjson.loads` of an 832-byte request, measured in turns with it.\n")
        text.append("| part | × reference | quartiles | |\n|---|--:|--:|--:|")
        text += [_row(each, ("median", "low", "high")) for each in parts]
        text.append("")
    if lines:
        text.append(f"Cost with many ÷ cost with few; flat up to {MOST}.\n")
        text.append("| call | few | many | ratio | quartiles | | |\n|---|--:|--:|--:|--:|--:|---|")
        text += [_row(each, ("few", "many", "median", "low", "high", "verdict")) for each in lines]
        text.append("")
    return "\n".join(text)


def _row(found: dict[str, Any], columns: tuple[str, ...]) -> str:
    if "error" in found:
        return f"| {found['name']} | " + "– | " * (len(columns) - 1) + f"not measured: {found['error']} |"
    return f"| {found['name']} | " + " | ".join(_show(found[column]) for column in columns) + " |"


def _show(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
