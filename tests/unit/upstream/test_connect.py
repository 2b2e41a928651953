"""Opening connections: TLS that verifies and resumes, and what each failure is called, on both loops."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trustme

from proxy.errors import Kind, ProxyError, Retry
from proxy.upstream.base import Origin
from proxy.upstream.connect import ResumingContext, make_tls_context
from tests.fakes.clock import FrozenClock
from tests.fakes.gates import Gate, wait_until
from tests.fakes.transports import WireRig, cancel, served
from tests.fakes.wire_server import Repeat, Wait, WireServer, Write, answer


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusting(authority: trustme.CA, tmp_path: Path) -> ResumingContext:
    """A client context that trusts the test's authority through an extra CA file."""
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return make_tls_context(str(path))


def serving(cert: trustme.LeafCert, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["http/1.1"])
    cert.configure_cert(context)
    return context


@pytest.fixture
async def make_rig(frozen_clock: FrozenClock) -> AsyncIterator[Callable[..., WireRig]]:
    rigs: list[WireRig] = []

    def make(**options: object) -> WireRig:
        rigs.append(WireRig(frozen_clock, **options))  # type: ignore[arg-type]
        return rigs[-1]

    yield make
    for rig in rigs:
        await rig.wire.close()


MakeRig = Callable[..., WireRig]


async def test_trusted_certificate_is_accepted_with_http_1_1_by_alpn(
    make_rig: MakeRig, authority: trustme.CA, trusting: ResumingContext
) -> None:
    """The extra CA file is trusted, and the server is told what we speak."""
    async with WireServer(ssl=serving(authority.issue_cert("127.0.0.1"))) as server:
        rig = make_rig(tls=trusting)
        assert (await rig.ask(server.origin)).body == b"ok"
        engine = server.wires[0].transport.get_extra_info("ssl_object")
        assert engine.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_second_connection_resumes_the_session_of_the_first(
    make_rig: MakeRig, authority: trustme.CA, trusting: ResumingContext, version: ssl.TLSVersion
) -> None:
    """The server confirms it: the handshake of every connection but the first is an abbreviated one."""
    context = serving(authority.issue_cert("127.0.0.1"), version)
    once = served(Write(answer(headers=[b"connection: close"])))
    async with WireServer(once, ssl=context) as server:
        rig = make_rig(tls=trusting)
        reused = []
        for number in range(3):
            await rig.ask(server.origin)
            reused.append(server.wires[number].transport.get_extra_info("ssl_object").session_reused)
        assert reused == [False, True, True]
        assert context.session_stats()["hits"] == 2


async def test_sessions_are_kept_for_a_bounded_number_of_hosts(trusting: ResumingContext) -> None:
    """The least recently used host loses its session."""

    class Engine:
        class session:  # noqa: N801
            has_ticket = True

    for number in range(300):
        trusting.remember(f"host-{number}", Engine)
    assert len(trusting.sessions) == 256
    assert "host-44" in trusting.sessions
    assert "host-43" not in trusting.sessions


async def test_handshake_that_gave_no_session_leaves_none(trusting: ResumingContext) -> None:
    """Nor does a TLS object that knows no sessions."""
    trusting.remember("host", object())
    assert not trusting.sessions


def expired(authority: trustme.CA) -> trustme.LeafCert:
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    return authority.issue_cert("127.0.0.1", not_after=past)


def wrong_name(authority: trustme.CA) -> trustme.LeafCert:
    return authority.issue_cert("other.example")


def unknown_authority(_: trustme.CA) -> trustme.LeafCert:
    return trustme.CA().issue_cert("127.0.0.1")


@pytest.mark.parametrize("issue", [expired, wrong_name, unknown_authority])
async def test_untrusted_certificate_is_refused_before_a_byte_of_the_request(
    make_rig: MakeRig,
    authority: trustme.CA,
    trusting: ResumingContext,
    issue: Callable[[trustme.CA], trustme.LeafCert],
) -> None:
    """Expired, for another name, or by an unknown authority: no request, no retry."""
    async with WireServer(ssl=serving(issue(authority))) as server:
        rig = make_rig(tls=trusting)
        error = await rig.fails(server.origin)
        assert (error.kind, error.why, error.retry) == (Kind.UPSTREAM_TLS, "tls", Retry.NO)
        assert (server.requests, rig.counts.failed, rig.pool()["opening"]) == ([], 1, 0)


async def test_plain_server_behind_an_https_origin_is_a_tls_failure(
    make_rig: MakeRig, trusting: ResumingContext
) -> None:
    """There is no falling back to plain text."""
    async with WireServer([Repeat((Write(b"HTTP/1.1 400 no\r\n\r\n"), Wait(Gate("never"))))]) as server:
        error = await make_rig(tls=trusting).fails(Origin("https", "127.0.0.1", server.port))
        assert error.kind is Kind.UPSTREAM_TLS


async def test_server_that_hangs_up_during_the_handshake_may_be_tried_again(
    make_rig: MakeRig, trusting: ResumingContext
) -> None:
    """Nothing of the request had been sent."""

    class HangUp(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.close()

    listener = await asyncio.get_running_loop().create_server(HangUp, "127.0.0.1", 0)
    error = await make_rig(tls=trusting).fails(Origin("https", "127.0.0.1", listener.sockets[0].getsockname()[1]))
    listener.close()
    await listener.wait_closed()
    assert (error.kind, error.retry) == (Kind.UPSTREAM_UNREACHABLE, Retry.SAME)


@pytest.mark.parametrize("ends", ["deadline", "cancellation"])
async def test_handshake_that_stalls_ends_with_its_connection(
    make_rig: MakeRig, trusting: ResumingContext, ends: str
) -> None:
    """A server that says nothing is dropped at the deadline, and at once when the exchange is cancelled."""
    async with WireServer([]) as server:
        rig = make_rig(tls=trusting)
        exchange = rig.begin(Origin("https", "127.0.0.1", server.port))
        await wait_until(lambda: server.wires and server.wires[0].buffer, "the handshake began")
        if ends == "deadline":
            rig.advance(5.1)
            with pytest.raises(ProxyError) as caught:
                await exchange
            assert (caught.value.kind, caught.value.why) == (Kind.UPSTREAM_TIMEOUT, "connect")
        else:
            await cancel(exchange)
        await server.cut(1)
        assert rig.pool()["opening"] == 0


async def test_tls_stream_can_be_cancelled_and_the_server_sees_it(
    make_rig: MakeRig, authority: trustme.CA, trusting: ResumingContext
) -> None:
    """An abort does not wait for a polite end of TLS."""
    never = Gate("never")
    async with WireServer(served(Wait(never)), ssl=serving(authority.issue_cert("127.0.0.1"))) as server:
        exchange = make_rig(tls=trusting).begin(server.origin)
        await never.reached()
        await cancel(exchange)
        await server.cut(1)


async def test_second_address_is_dialled_when_the_first_refuses(make_rig: MakeRig) -> None:
    """A name with a dead address and a live one is reachable."""
    async with WireServer() as server:
        rig = make_rig(lookup=lambda _: ("::1", "127.0.0.1"))
        assert (await rig.ask(Origin("http", "two.example", server.port))).body == b"ok"


async def test_name_in_the_request_is_the_origins_and_not_the_address(make_rig: MakeRig) -> None:
    """Host carries the name that was asked for."""
    async with WireServer() as server:
        await make_rig(lookup=lambda _: ("127.0.0.1",)).ask(Origin("http", "api.example", server.port))
        assert server.requests[0].header(b"host") == [f"api.example:{server.port}".encode()]


async def test_refused_connection_is_named(make_rig: MakeRig) -> None:
    """Nobody listens."""
    async with WireServer() as server:
        origin = server.origin
    error = await make_rig().fails(origin)
    assert (error.kind, error.why, error.retry) == (Kind.UPSTREAM_UNREACHABLE, "refused", Retry.SAME)


@pytest.mark.parametrize(
    ("raised", "kind", "why"),
    [
        (OSError(113, "No route to host"), Kind.UPSTREAM_UNREACHABLE, "unreachable"),
        (ConnectionResetError(104, "reset"), Kind.UPSTREAM_UNREACHABLE, "reset"),
        (TimeoutError(110, "timed out"), Kind.UPSTREAM_TIMEOUT, "connect"),
        (RuntimeError("handle closed"), Kind.UPSTREAM_UNREACHABLE, "unreachable"),
    ],
)
async def test_failure_to_connect_has_its_name(make_rig: MakeRig, raised: Exception, kind: Kind, why: str) -> None:
    """All of them may be tried again: nothing was sent."""

    async def fail(*_: object, **__: object) -> object:
        raise raised

    error = await make_rig(start_connection=fail).fails(Origin("http", "127.0.0.1", 1))
    assert (error.kind, error.why, error.retry) == (kind, why, Retry.SAME)


def test_ca_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    """A typing error in a setting must not end as a certificate failure hours later."""
    with pytest.raises(FileNotFoundError):
        make_tls_context(str(tmp_path / "missing.pem"))
