"""``python -m loadtests.upstream --port N …``: the fake provider until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys

from loadtests.upstream.options import read_options
from loadtests.upstream.server import serve
from proxy.cli.loop import new_event_loop

if __name__ == "__main__":
    port, options = read_options(sys.argv[1:])
    gc.freeze()
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve(port, options))
