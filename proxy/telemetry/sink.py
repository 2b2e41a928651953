"""Where log lines go: into a bounded buffer that a thread of its own empties into a stream.

Writing never waits for the stream: a pipe that nobody reads fills the buffer, then lines are dropped and counted.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import threading
from collections import deque
from typing import Final, Protocol

CAPACITY_BYTES: Final = 8 << 20
_GATHER_S: Final = 0.05
"""How long the thread lets lines gather before it writes them, so that it costs one system call for many lines."""
_BATCH_BYTES: Final = 1 << 18
SHARED_BATCH_BYTES: Final = 4096
"""What a pipe takes in one piece (PIPE_BUF), so that several processes can write whole lines into it."""


class ByteStream(Protocol):
    """What is written to: a binary file or anything like it."""

    def write(self, data: bytes, /) -> int | None: ...


class BufferedSink:
    """A file object for whole lines. ``write`` may be called from any thread."""

    # Mutable state under `_lock`: `_lines` and `_pending_bytes` (grown by writers, emptied by the thread), `_closed`,
    # `dropped`. `_told` says that the thread has been told already; a stale value costs one needless wake-up.
    __slots__ = (
        "__weakref__",
        "_batch_bytes",
        "_capacity_bytes",
        "_closed",
        "_fd",
        "_lines",
        "_lock",
        "_pending_bytes",
        "_stop",
        "_stream",
        "_thread",
        "_told",
        "_wake",
        "dropped",
        "written",
    )

    def __init__(
        self, stream: ByteStream, capacity_bytes: int = CAPACITY_BYTES, *, batch_bytes: int = _BATCH_BYTES
    ) -> None:
        self._batch_bytes = batch_bytes
        self._stream = stream
        self._fd = _descriptor_of(stream)
        self._capacity_bytes = capacity_bytes
        self._lines: deque[bytes] = deque()
        self._pending_bytes = 0
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._told = False
        self._closed = False
        self.dropped = 0
        """Lines that found no room, or that the stream refused."""
        self.written = 0
        """Lines handed to the stream."""
        self._thread = threading.Thread(target=self._drain, name="log-sink", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> int:
        size = len(line)
        with self._lock:
            if self._closed or self._pending_bytes + size > self._capacity_bytes:
                self.dropped += 1
                return 0
            self._lines.append(line)
            self._pending_bytes += size
        if not self._told:
            self._told = True
            self._wake.set()
        return size

    def flush(self) -> None:
        """Nothing: structlog flushes after each line, and the thread decides when to write."""

    @property
    def pending_bytes(self) -> int:
        return self._pending_bytes

    def close(self, timeout_s: float = 2.0) -> bool:
        """Write what is buffered, for at most ``timeout_s``; later lines are dropped. ``False`` if time ran out, in
        which case what is left is counted as dropped and the thread is left behind, to die with the process."""
        with self._lock:
            self._closed = True
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout_s)
        done = not self._thread.is_alive()
        with self._lock:
            self.dropped += len(self._lines)
            self._lines.clear()
            self._pending_bytes = 0
        return done

    def _drain(self) -> None:
        """The thread: wait for a line, let more gather, write all."""
        while not self._stop.is_set():
            self._wake.wait()
            self._stop.wait(_GATHER_S)
            self._wake.clear()
            self._told = False  # before the lines are taken: a line that comes in between rings again
            self._write_out()
        self._write_out()

    def _write_out(self) -> None:
        while batch := self._take_batch():
            try:
                self._send(b"".join(batch))
                self.written += len(batch)
            except (OSError, ValueError):
                # A closed pipe or a full disk must not end the thread: it may get better, and nobody can be told.
                with self._lock:
                    self.dropped += len(batch)

    def _take_batch(self) -> list[bytes]:
        batch: list[bytes] = []
        size = 0
        with self._lock:
            lines = self._lines
            while lines and (not batch or size + len(lines[0]) <= self._batch_bytes):
                line = lines.popleft()
                size += len(line)
                batch.append(line)
            self._pending_bytes -= size
        return batch

    def _send(self, data: bytes) -> None:
        """Write to the descriptor itself where there is one: a thread that is stuck in a buffered file would hold
        that file's lock when the interpreter wants to flush it at exit."""
        fd = self._fd
        if fd is None:
            self._stream.write(data)
            return
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                select.select([], [fd], [], 1.0)


def _descriptor_of(stream: ByteStream) -> int | None:
    with contextlib.suppress(AttributeError, OSError, io.UnsupportedOperation):
        fd = stream.fileno()  # type: ignore[attr-defined]
        return fd if isinstance(fd, int) else None
    return None
