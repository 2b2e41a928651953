"""Several processes write their logs into one pipe, and no line is cut by another's."""

from __future__ import annotations

from proxy.telemetry.sink import SHARED_BATCH_BYTES, BufferedSink


class Pieces:
    """Remembers each write."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes, /) -> int:
        self.written.append(data)
        return len(data)


def test_a_shared_pipe_gets_whole_lines_in_pieces_that_it_takes_at_once() -> None:
    """The kernel keeps such a piece together; only a line that is longer by itself goes alone."""
    pieces = Pieces()
    lines = [b"x" * 1500 + b"\n" for _ in range(9)] + [b"y" * 9000 + b"\n", b"z\n"]
    sink = BufferedSink(pieces, batch_bytes=SHARED_BATCH_BYTES)
    for line in lines:
        sink.write(line)
    sink.close()

    assert b"".join(pieces.written) == b"".join(lines)
    assert all(piece.endswith(b"\n") for piece in pieces.written)
    assert [piece for piece in pieces.written if len(piece) > SHARED_BATCH_BYTES] == [lines[-2]]
    assert max(piece.count(b"\n") for piece in pieces.written) == 2
