"""``python -m loadtests``: run scenarios and write what they found. See README.md."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from loadtests import machine, report
from loadtests.budgets import judge, load_budgets
from loadtests.peers import ON_DEMAND
from loadtests.scenarios import SCENARIOS
from loadtests.stage import FULL, QUICK, Stage

_RESULTS = Path(__file__).parent / "results"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests",
        description="Measures the proxy beside its peers on loopback and writes a report. Needs the extra `bench`.",
    )
    parser.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO", help=f"which to run (default: all): {', '.join(SCENARIOS)}"
    )
    parser.add_argument("--quick", action="store_true", help="a short run of everything, within five minutes")
    parser.add_argument("--rounds", type=int, help="turns of each peer (2 with --quick, else 5)")
    parser.add_argument("--requests", type=int, help="requests of a closed loop (20,000 with --quick, else 60,000)")
    parser.add_argument("--soak-minutes", type=float, help="length of the soak (0.2 with --quick, else 30)")
    parser.add_argument(
        "--with", dest="extra", action="append", default=[], choices=ON_DEMAND, help="also measure this peer"
    )
    parser.add_argument("--out", type=Path, help="folder for the result (default: loadtests/results/<date>-<commit>)")
    parser.add_argument("--strict", action="store_true", help="exit code 1 if a budget is missed")
    return parser


def main(arguments: list[str]) -> int:
    """Run, write, tell. 1 if a scenario failed or, with --strict, a budget was missed; 2 for wrong use."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    unknown = [name for name in args.scenarios if name not in SCENARIOS]
    if unknown:
        parser.error(f"there is no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    scale = QUICK if args.quick else FULL
    scale = replace(
        scale,
        rounds=args.rounds or scale.rounds,
        requests=args.requests or scale.requests,
        soak_s=args.soak_minutes * 60 if args.soak_minutes else scale.soak_s,
    )
    names = [name for name in SCENARIOS if name in args.scenarios or not args.scenarios]
    out: Path = args.out or _RESULTS / f"{time.strftime('%Y-%m-%d')}-{machine.describe_revision().rstrip('+')}"
    about = report.About(
        started=time.strftime("%Y-%m-%d %H:%M"),
        command="python -m loadtests " + " ".join(arguments),
        machine=machine.describe_machine(),
        versions=machine.describe_versions(),
        scenarios={name: SCENARIOS[name].about for name in names},
    )
    with tempfile.TemporaryDirectory(prefix="loadtests-") as folder:
        stage = Stage(scale, Path(folder), machine.choose_cores(), args.extra, _say)
        failed = run_scenarios(stage, names)
    judged = judge(load_budgets(), stage.rows)
    report.write(out, about, stage, judged)
    _say(report.render_budgets(judged))
    _say(f"report: {out / 'report.md'}")
    missed = args.strict and any(each.verdict.value == "missed" for each in judged)
    return 1 if failed or missed else 0


def run_scenarios(stage: Stage, names: list[str]) -> bool:
    """One after the other; whether one of them failed. A failure is told in the report and ends only its scenario."""
    failed = False
    for place, name in enumerate(names):
        if not stage.enter(name, (place + 1) / len(names)):
            continue
        started_at = time.monotonic()
        _say(f"{name}: {SCENARIOS[name].about}")
        try:
            SCENARIOS[name].run(stage)
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            stage.note(f"failed: {type(error).__name__}: {error}")
            failed = True
        _say(f"  {time.monotonic() - started_at:.0f} s")
    return failed


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
