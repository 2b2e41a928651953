"""``sameflight`` and ``python -m proxy``."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; the result is the exit code."""
    from proxy.cli.main import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
