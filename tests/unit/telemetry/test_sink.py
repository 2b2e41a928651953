"""The buffer of log lines: writers never wait, what does not fit is counted, and closing has a deadline."""

import io
import os
import threading

import pytest

from proxy.telemetry.sink import BufferedSink


class GatedStream:
    """A stream that takes nothing before its gate is opened, and says when somebody tries."""

    def __init__(self):
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.data = b""

    def write(self, data):
        self.entered.set()
        assert self.gate.wait(10)
        self.data += data
        return len(data)


class BrokenStream:
    def __init__(self):
        self.calls = 0

    def write(self, data):
        self.calls += 1
        raise OSError("broken pipe")


def test_lines_arrive_in_order_and_whole():
    """Closing writes what is left."""
    stream = io.BytesIO()
    sink = BufferedSink(stream)
    for number in range(1_000):
        sink.write(b"%d\n" % number)
    assert sink.close() is True
    assert stream.getvalue() == b"".join(b"%d\n" % number for number in range(1_000))
    assert (sink.written, sink.dropped, sink.pending_bytes) == (1_000, 0, 0)


def test_lines_are_written_without_closing():
    """The thread wakes by itself."""
    stream = GatedStream()
    stream.gate.set()
    sink = BufferedSink(stream)
    sink.write(b"one\n")
    assert stream.entered.wait(10)
    sink.close()
    assert stream.data == b"one\n"


def test_a_stream_that_takes_nothing_costs_lines_and_not_time():
    """The buffer fills, then lines are dropped and counted; the writer returns each time."""
    stream = GatedStream()
    sink = BufferedSink(stream, capacity_bytes=100)
    sink.write(b"x" * 50)
    assert stream.entered.wait(10)
    accepted = [sink.write(b"y" * 40) for _ in range(5)]
    assert accepted == [40, 40, 0, 0, 0]
    assert (sink.dropped, sink.pending_bytes) == (3, 80)
    stream.gate.set()
    assert sink.close() is True
    assert stream.data == b"x" * 50 + b"y" * 80


def test_closing_on_a_stuck_stream_gives_up_in_time():
    """What is left is counted as dropped."""
    stream = GatedStream()
    sink = BufferedSink(stream)
    sink.write(b"one\n")
    assert stream.entered.wait(10)
    sink.write(b"two\n")
    assert sink.close(timeout_s=0.01) is False
    assert sink.dropped == 1
    stream.gate.set()


def test_a_line_after_the_end_is_dropped():
    """Nobody would write it."""
    sink = BufferedSink(io.BytesIO())
    sink.close()
    assert sink.write(b"late\n") == 0
    assert sink.dropped == 1


def test_a_broken_stream_loses_lines_and_nothing_else():
    """A closed pipe must not end the thread or the process."""
    stream = BrokenStream()
    sink = BufferedSink(stream)
    sink.write(b"one\n")
    assert sink.close() is True
    assert (stream.calls, sink.dropped, sink.written) == (1, 1, 0)


def test_closing_twice_is_harmless():
    """Ends of different lives may both close."""
    sink = BufferedSink(io.BytesIO())
    assert sink.close() is True
    assert sink.close() is True


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_a_full_pipe_is_written_to_as_it_is_read(pipe):
    """More than a pipe holds arrives whole, even when writing to it does not block."""
    reader, writer = pipe
    os.set_blocking(writer, False)
    line = b"z" * 999 + b"\n"
    with open(writer, "wb", closefd=False) as stream:
        sink = BufferedSink(stream)
        for _ in range(500):
            sink.write(line)
        closing = threading.Thread(target=sink.close, args=(10,))
        closing.start()
        received = 0
        while received < 500_000:
            received += len(os.read(reader, 1 << 16))
        closing.join(10)
    assert (sink.written, sink.dropped) == (500, 0)


def test_many_threads_may_write():
    """Lines are neither lost nor torn."""
    stream = io.BytesIO()
    sink = BufferedSink(stream)
    threads = [
        threading.Thread(target=lambda name=name: [sink.write(name * 20 + b"\n") for _ in range(200)])
        for name in (b"a", b"b", b"c", b"d")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sink.close()
    lines = stream.getvalue().splitlines()
    assert sorted(set(lines)) == [b"a" * 20, b"b" * 20, b"c" * 20, b"d" * 20]
    assert len(lines) == 800
