"""Every long-lived object, built once in dependency order and closed in reverse. No logic of its own.

    construct → start (listen) → serve → drain (stop admitting, let flights run to the grace) → close
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from proxy.access.identity import Identity
from proxy.books import Books
from proxy.cache.hot import HotCache
from proxy.cache.shared import Bounds, make_shared_cache
from proxy.clearance import Clearance
from proxy.clock import Clock, Deadlines
from proxy.config.catalog import Catalog
from proxy.config.keys import KeyRecord
from proxy.config.settings import Settings
from proxy.config.watch import CatalogHolder
from proxy.drain import drain
from proxy.edge.admin import AdminServer, Health, Views
from proxy.edge.admin_api import AdminApi
from proxy.edge.admin_flags import FlagPages
from proxy.edge.admin_keys import KeyPages
from proxy.edge.body import BodyLimits
from proxy.edge.relay import EdgeTools
from proxy.edge.server import DataServer
from proxy.edge.websocket import SocketRelay
from proxy.errors import Kind, ProxyError
from proxy.exposure import expose
from proxy.fleet import Fleet
from proxy.flight.idempotency import IdempotencyIndex
from proxy.flight.limits import Limits
from proxy.flight.runner import TaskRunner
from proxy.flight.table import Table
from proxy.formation.make import make_formation
from proxy.guarding import Guarding
from proxy.janitor import Janitor
from proxy.live import make_page
from proxy.pipeline import Pipeline
from proxy.policy.planner import Planner
from proxy.pressure.doors import Doors, bind, choose_bound
from proxy.pressure.gate import Gate, GateLimits
from proxy.pressure.memory import MemoryWatch, Resident, read_cgroup_limit
from proxy.pressure.turns import Turns
from proxy.production import Production
from proxy.relief import Relief
from proxy.shaping import Shaper
from proxy.store.open import open_cache_database
from proxy.summaries import Summaries
from proxy.telemetry.log import Logging, get_logger
from proxy.telemetry.metrics import Metrics
from proxy.upstream.outbound import Outbound
from proxy.vault import Vault
from proxy.workers.listening import Place, remove_stale_socket, set_mode

_LAG_LIMIT_S = 5.0


class App:
    """One proxy process: a data listener, an admin listener and what is behind them."""

    # Mutable state: the listeners between start and close, `phase`, which the probes read, and the running reload.
    def __init__(
        self,
        settings: Settings,
        *,
        env: Mapping[str, str] | None = None,
        logging: Logging | None = None,
        clock: Clock | None = None,
        place: Place | None = None,
    ) -> None:
        """Build everything; nothing listens and nothing runs yet. Needs a running loop. ``place``: the sockets that
        a parent made. Raises ``CatalogError``."""
        loop = asyncio.get_running_loop()
        self.settings = settings
        self._place = place
        self.logging = logging
        self.log = get_logger()
        self.phase = "starting"
        clock = self.clock = clock or Clock()
        deadlines = self.deadlines = Deadlines(clock)
        secret = _derive_secret(settings)
        via = b"1.1 sameflight-" + os.urandom(6).hex().encode()
        self.catalogs = CatalogHolder(settings, os.environ if env is None else env)
        self.metrics = Metrics()
        self.hot = HotCache(settings.hot_cache_bytes, max_entry_bytes=settings.max_entry_bytes)
        self.shared = make_shared_cache(
            settings.cache_url,
            secret,
            clock,
            prefix=settings.cache_prefix,
            bounds=Bounds(get_s=settings.cache_timeout_ms / 1e3),
            open_database=open_cache_database,
            table_bytes=settings.cache_table_bytes,
        )
        self.formation = make_formation(settings, secret, clock)
        self.transport = Outbound(settings, clock, deadlines, os.environ if env is None else env)
        self.runner = TaskRunner(loop)
        self.table = Table(clock, deadlines, self.runner, _limits(settings))
        self.vault = Vault(settings, clock, deadlines, self.log, self.metrics.bug, use_flags=self.catalogs.use_flags)
        clearance = Clearance(
            clock,
            self.vault.limiter,
            self.vault.spool,
            assumed_output_tokens=settings.assumed_output_tokens,
        )
        self.books = Books(
            clock,
            self.metrics,
            logging.access if logging is not None else None,
            clearance,
            later=loop.call_later,
            slow_overhead_s=settings.slow_overhead_ms / 1e3,
            log=self.log,
        )
        self.fleet = Fleet(settings, clock, deadlines, self.transport, self.metrics, self.log)
        self.guarding = Guarding(clock, self.transport, self.metrics, self.log)
        production = Production(
            clock=clock,
            deadlines=deadlines,
            transport=self.transport,
            failover=self.fleet.failover,
            formation=self.formation,
            screening=self.guarding.screening,
            hot=self.hot,
            shared=self.shared,
            books=self.books,
            connect_s=settings.connect_timeout_s,
            finished=self.runner.finished,
        )
        self.runner.produce = production.run
        self.runner.launch = production.launch
        self.idempotency = IdempotencyIndex(clock, settings.idempotency_ttl_s)
        table = self.table
        self.gate = Gate(
            lambda: len(table.live),
            lambda: table.started,
            GateLimits(settings.shed_after_ms / 1e3, settings.shed_target_ms / 1e3),
        )
        self.turns = Turns(loop, clock, self.gate.observe)
        self.shaper = Shaper(clock, self.guarding.vetting)
        self.pipeline = Pipeline(
            clock=clock,
            catalogs=self.catalogs,
            identity=Identity(secret, required=settings.auth == "required", ring=self.vault.ring, clock=clock),
            clearance=clearance,
            planner=Planner(secret, via, settings.idempotency_ttl_s),
            hot=self.hot,
            table=self.table,
            idempotency=self.idempotency,
            books=self.books,
            via_mark=via[4:],
            shaper=self.shaper,
            gate=self.gate,
            listing=self.fleet.listing,
        )
        self.summaries = self.shaper.shortening.summaries = Summaries(
            clock, deadlines, self.pipeline, max_bytes=settings.summary_cache_bytes
        )
        self.sockets = SocketRelay(self.transport.connect_websocket)
        self.server = self._make_server()
        self.admin = self._make_admin()
        if settings.revoke_ends_streams:
            self.vault.ring.on_change = self._end_revoked
        self.resident = Resident()
        self.relief = Relief(self.hot, self.gate, self.server)
        self.memory = MemoryWatch(
            self.relief,
            limit_bytes=settings.memory_limit_bytes,
            read_rss=self.resident.read,
            read_limit=lambda: read_cgroup_limit() // (place.parts if place is not None else 1),
        )
        self.janitor = Janitor(clock, deadlines, observe_lag=self._observe_lag)
        self._add_duties()
        expose(self)
        self._stack = AsyncExitStack()
        self.doors: Doors | None = None
        self._admin_listener: asyncio.Server | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._reload_wanted = False

    def _make_server(self) -> DataServer:
        settings = self.settings
        tools = EdgeTools(
            self.clock,
            self.deadlines,
            heartbeat_after_s=settings.heartbeat_after_s,
            heartbeat_every_s=settings.heartbeat_every_s,
            heeds_patience=settings.heed_patience,
        )
        return DataServer(
            self.pipeline,
            tools,
            BodyLimits(settings.max_body_bytes, settings.body_min_rate, settings.body_timeout_s),
            max_header_bytes=settings.max_header_bytes,
            head_timeout_s=settings.head_timeout_s,
            write_stall_s=settings.write_stall_s,
            keepalive_s=settings.keepalive_s,
            abort_on_half_close=settings.abort_on_half_close,
            sockets=self.sockets,
            fast_lane=settings.fast_lane,
        )
    def _make_admin(self) -> AdminServer:
        api = AdminApi(
            self.settings.admin_token,
            (
                KeyPages(self.vault.issuer, self.clock, self.log),
                FlagPages(self.vault.store, self.vault.flags, self.catalogs, self.log),
            ),
        )
        return AdminServer(
            Views(
                live=self._live,
                ready=self._ready,
                started=self._started,
                metrics=self.metrics.render,
                flights=self._flights,
                targets=self.fleet.describe,
            ),
            api,
            make_page(self, api),
        )

    # -- life -------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen. Raises ``OSError`` when an address cannot be had."""
        settings = self.settings
        self.transport.prepare({provider.scheme for provider in self.catalogs.current.providers.values()})
        self._stack.push_async_callback(self.vault.close)
        self._stack.callback(self.books.post)
        await self.vault.start()
        self.janitor.start()
        self._stack.callback(self.janitor.stop)
        self._stack.push_async_callback(self.shared.close)
        self.shared.start(self.hot.purge)
        if self.formation is not None:
            self._stack.push_async_callback(self.formation.close)
            self.formation.start()
        self._stack.push_async_callback(self.transport.close)
        self._stack.push_async_callback(self.fleet.close)
        self._stack.push_async_callback(self.summaries.close)
        self._adopt(self.catalogs.current)
        try:
            self._admin_listener = await self._listen_admin()
            self._stack.push_async_callback(self._close_admin)
            server = self.server
            listening = self._place.data if self._place is not None else await self._bind()
            most = choose_bound(settings.max_connections)
            self.doors = Doors(listening, server, lambda: len(server.clients), most)
            await self.doors.open()
        except OSError:
            await self._stack.aclose()
            raise
        self.phase = "serving"

    async def _listen_admin(self) -> asyncio.Server:
        loop, settings, place = asyncio.get_running_loop(), self.settings, self._place
        if place is not None and place.admin is not None:
            return await loop.create_unix_server(self.admin, sock=place.admin)
        return await loop.create_server(self.admin, settings.admin_host, settings.admin_port)

    async def _bind(self) -> socket.socket:
        settings = self.settings
        if not settings.unix_socket:
            return await bind((settings.host, settings.port))
        remove_stale_socket(settings.unix_socket)
        listening = await bind(settings.unix_socket)
        set_mode(settings.unix_socket, settings.unix_socket_mode)
        return listening

    async def drain(self, grace_s: float, delay_s: float = 0.0) -> None:
        """Unready at once, and serving for ``delay_s``; then stop admitting, let what is in the air land within
        ``grace_s``, end the rest with an error event."""
        self.phase = "draining"
        await drain(self, grace_s, delay_s)

    async def close(self) -> None:
        """End everything that is left, in reverse order of its making."""
        self.phase = "stopped"
        if self.doors is not None:
            self.doors.close()
        self.table.shut(ProxyError(Kind.DRAINING, "The proxy has stopped."))
        with suppress(TimeoutError):
            await asyncio.wait_for(self.runner.wait(), 5.0)
        await self.server.shutdown(0.1)
        self.resident.close()
        self._reload_wanted = False
        if self._reloading is not None:
            await asyncio.wait((self._reloading,), timeout=1.0)
        if self.doors is not None and self._place is None:  # else the socket there is somebody else's
            _remove(self.settings.unix_socket)
        await self._stack.aclose()

    async def _close_admin(self) -> None:
        assert self._admin_listener is not None
        self._admin_listener.close()
        await self.admin.shutdown(0.1)

    # -- addresses --------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The data listener's port, as bound."""
        address = self.doors.address if self.doors is not None else None
        return int(address[1]) if isinstance(address, tuple) else 0

    @property
    def admin_port(self) -> int:
        return _port_of(self._admin_listener)

    @property
    def url(self) -> str:
        return f"http://{self.settings.host}:{self.port}"

    @property
    def admin_url(self) -> str:
        return f"http://{self.settings.admin_host}:{self.admin_port}"

    # -- duties -----------------------------------------------------------------------------------------------

    def _observe_lag(self, lag_s: float) -> None:
        self.metrics.event_loop_lag_seconds.observe(lag_s)
        self.turns.tick()

    def _add_duties(self) -> None:
        add = self.janitor.add
        add("memory", 0.25, self.memory.look)
        add("doors", 0.1, lambda: self.doors.sweep() if self.doors is not None else None)
        add("table", 5.0, self.table.sweep)
        add("hot_cache", 1.0, lambda: self.hot.sweep(self.clock.now()))
        add("idempotency", 5.0, self.idempotency.sweep)
        add("gone", 0.1, self.server.find_gone)
        add("pool", 1.0, lambda: self.transport.sweep(self.clock.now()))
        add("config", 2.0, self._reload_if_changed)
        self.fleet.add_duties(self.janitor)
        self.vault.add_duties(self.janitor)

    def _reload_if_changed(self) -> None:
        if self.catalogs.changed():
            self.reload()

    def reload(self) -> None:
        """Read the catalog file again, off the loop; a bad one changes nothing. Asked for while it is being read, it
        is read once more afterwards: what is being read may be older than the wish."""
        self._reload_wanted = True
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.get_running_loop().create_task(self._reload())

    async def _reload(self) -> None:
        while self._reload_wanted:
            self._reload_wanted = False
            result = await asyncio.to_thread(self.catalogs.reload)
            if not result.ok:
                self.log.error("config_reload_failed", problems=[str(problem) for problem in result.problems])
            elif result.changed:
                self.hot.advance()
                self._adopt(self.catalogs.current)
                self.shared.announce(self.catalogs.current.digest)
                self.log.info("config_reloaded", generation=result.generation)

    def _adopt(self, catalog: Catalog) -> None:
        self.guarding.prepare(catalog)
        self.fleet.adopt(catalog)
        for problem in catalog.warnings:
            self.log.warning("config_warning", problem=str(problem))

    def _end_revoked(self, record: KeyRecord) -> None:
        """A key was revoked: whoever still reads with it gets an error as the last event."""
        if record.revoked_at:
            error = ProxyError(Kind.INVALID_KEY, "This Sameflight key was revoked.", why="key_revoked")
            for connection in self.server.clients:
                relay = connection.relay
                principal = relay.exchange.principal if relay is not None else None
                if relay is None or relay.subscription is None or principal is None:
                    continue
                if principal.key_id == record.id:
                    relay.subscription.eject(error)

    # -- views ------------------------------------------------------------------------------------------------

    def probe(self) -> tuple[Health, Health]:
        """What ``/livez`` and ``/readyz`` would say."""
        return self._live(), self._ready()

    def _live(self) -> Health:
        lag_s = self.janitor.lag_s
        return Health(lag_s < _LAG_LIMIT_S, {"event_loop_lag_s": round(lag_s, 4)})

    def _ready(self) -> Health:
        knows = self.settings.auth != "required" or self.vault.knows_keys
        facts: dict[str, Any] = {"phase": self.phase} if knows else {"phase": self.phase, "keys": "unknown"}
        return Health(self.phase == "serving" and knows, facts)

    def _started(self) -> Health:
        return Health(self.phase != "starting", {"phase": self.phase})

    def _flights(self) -> dict[str, Any]:
        return {
            "flights": self.table.describe(),
            "retained_bytes": self.table.retained_bytes,
            "keys": len(self.table),
            "upstream": self.transport.describe(),
        }


def _derive_secret(settings: Settings) -> bytes:
    """32 bytes under which credentials and requests are hashed: the configured secret's, or this process's own."""
    given = settings.key_secret.encode() or os.urandom(32)
    return blake2b(given, digest_size=32, person=b"sameflight/key").digest()


def _limits(settings: Settings) -> Limits:
    return Limits(
        max_subscribers=settings.max_subscribers,
        max_tape_bytes=settings.max_tape_bytes,
        max_answer_bytes=settings.max_answer_bytes,
        max_lag_bytes=settings.max_lag_bytes,
        run_ahead_bytes=settings.run_ahead_bytes,
        max_stall_s=settings.write_stall_s,
        retained_bytes=settings.retained_bytes,
        max_flights=settings.max_flights,
        max_flights_per_scope=settings.max_flights_per_scope,
        max_join_age_s=settings.max_join_age_s,
        max_flight_age_s=settings.total_timeout_s + 60.0,
    )


def _port_of(listener: asyncio.Server | None) -> int:
    if listener is None or not listener.sockets:
        return 0
    return int(listener.sockets[0].getsockname()[1])


def _remove(path: str) -> None:
    if path:
        Path(path).unlink(missing_ok=True)
