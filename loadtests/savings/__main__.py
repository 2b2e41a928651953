"""``python -m loadtests.savings``: what each policy saves on a seeded day of ten thousand messages.

Everything off, everything on, each policy alone, and all but each. The mock upstream counts tokens as a model would,
prices are those of a large and a small model. ``--out``: where table, picture and figures are written.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

from loadtests import machine
from loadtests.savings.replay import POLICIES, Outcome, replay
from loadtests.savings.report import BAR, name_of, render_picture, render_table
from loadtests.savings.trace import DIGEST, MESSAGES, SEED, digest, make_trace


def main(arguments: list[str]) -> int:
    """0 if every request was answered and everything on beats the bar."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.savings", description=__doc__)
    parser.add_argument("--messages", type=int, default=MESSAGES, help="fewer, for a first impression")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--short", action="store_true", help="everything off and everything on, no ablation")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    trace = make_trace(args.messages, args.seed)
    if (args.messages, args.seed) == (MESSAGES, SEED) and digest(trace) != DIGEST:
        print("the trace is not the one that its digest says", file=sys.stderr)
        return 1
    alone = [(policy,) for policy in POLICIES]
    without = [tuple(each for each in POLICIES if each != policy) for policy in POLICIES]
    sets: list[tuple[str, ...]] = [(), POLICIES, *([] if args.short else alone + without)]
    outcomes = []
    for on in sets:
        begun_at = time.monotonic()
        outcomes.append(asyncio.run(replay(trace, on)))
        print(f"{name_of(outcomes[-1])}: {time.monotonic() - begun_at:.0f} s", file=sys.stderr)
    text = f"{render_table(outcomes)}\nThe bar: {BAR}.\n"
    print(text)
    if args.out is not None:
        write(args.out, text, outcomes)
    return 0 if not any(each.failed for each in outcomes) and beats_the_bar(outcomes[0], outcomes[1]) else 1


def beats_the_bar(off: Outcome, on: Outcome) -> bool:
    """Whether everything on is at least as good as what was asked for."""
    shares = on.pattern / on.requests, (on.hits + on.joined) / on.requests
    saved = 1 - on.cost_usd / off.cost_usd
    return shares[0] >= 0.2 and shares[1] >= 0.1 and on.strong / on.requests <= 0.1 and saved >= 0.8


def write(folder: Path, text: str, outcomes: list[Outcome]) -> None:
    """The report for people, the figures for programs."""
    folder.mkdir(parents=True, exist_ok=True)
    about = f"{MESSAGES:,} messages, seed {SEED}, {time.strftime('%Y-%m-%d')}, {machine.describe_revision()}"
    (folder / "savings.md").write_text(f"# What the savings save\n\n{about}\n\n{text}\n![](savings.svg)\n", "utf-8")
    (folder / "savings.svg").write_text(render_picture(outcomes), "utf-8")
    figures = {name_of(each): each._asdict() for each in outcomes}
    (folder / "savings.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
