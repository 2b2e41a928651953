"""Large pieces are handed on and not copied, so that a thousand stalled readers hold one of each."""

from __future__ import annotations

import pytest

from proxy.flight.flight import Ending
from tests.unit.edge.rig import JSON_HEAD, STREAM_HEAD, RelayRig

LARGE = b"x" * 200_000


def test_a_large_piece_of_a_stream_is_written_as_it_is_between_its_framing() -> None:
    """The very same bytes object, whoever reads it."""
    rig = RelayRig()
    flight = rig.fly()
    flight.begin(STREAM_HEAD)
    flight.append(b"data: 1\n\n")
    flight.flush()
    flight.append(LARGE)
    flight.flush()
    flight.seal(Ending.OK)
    flight.flush()

    assert any(write is LARGE for write in rig.wire.writes)
    assert rig.wire.body == b"9\r\ndata: 1\n\n\r\n30d40\r\n" + LARGE + b"\r\n0\r\n\r\n"
    rig.ended_once("ok")


@pytest.mark.parametrize("http10", [True, False])
def test_a_large_whole_answer_is_not_copied_behind_its_head(http10: bool) -> None:
    """Two writes, which the transport sends as one."""
    rig = RelayRig(http10=http10)
    flight = rig.fly()
    flight.begin(JSON_HEAD)
    flight.append(LARGE)
    flight.seal(Ending.OK)
    flight.flush()

    assert any(write is LARGE for write in rig.wire.writes)
    assert b"content-length: 200000" in rig.wire.head
    assert rig.wire.body == LARGE
    rig.ended_once("ok")
