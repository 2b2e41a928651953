"""Keys, limits, budgets, flags and usage: what outlives the process and what keeps it in memory, opened and closed in
order.

The store may be away when the process starts, and at any time after: keys come from memory or the snapshot, budgets
from their leases, usage waits in the spool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from proxy.access.budgets_leases import BudgetLeases
from proxy.access.feed import KeyFeed
from proxy.access.issuing import Issuer
from proxy.access.keyring import Keyring, Tuning
from proxy.access.limits import Limiter
from proxy.access.limits_account import LimitOptions
from proxy.access.limits_shared import SharedLimits
from proxy.access.limits_valkey import make_rate_level
from proxy.access.pepper import load_pepper
from proxy.access.sharedkeys import KeyCodec, SharedKeyring
from proxy.access.snapshot import FILE_NAME, SnapshotFile
from proxy.access.token import Digester
from proxy.accounting.ledger import Ledger
from proxy.accounting.spool import Spool
from proxy.cache.recording import Codec
from proxy.cache.shared import Bounds, make_shared_cache
from proxy.clock import Clock, Deadlines
from proxy.config.feature_flags import Flags
from proxy.config.keys import Allowance
from proxy.config.settings import Settings
from proxy.config.values import DATABASES, mask_url
from proxy.errors import StoreError
from proxy.exchange import PROCESS_TOKEN
from proxy.flag_feed import FlagFeed
from proxy.flag_snapshot import FILE_NAME as FLAGS_FILE
from proxy.flag_snapshot import FlagSnapshot
from proxy.janitor import Janitor
from proxy.store.open import open_store

_SHARED_KEY_BYTES = 16 << 20
_OPEN_S = 5.0
_ANY_S = 86_400.0  # longer than anybody's lease
HOLDER = "req_" + PROCESS_TOKEN
"""This process's name at the store: what its request ids begin with, so that the heir of its spool knows what it had
leased."""


class Vault:
    """Built once by the app. Raises ``PepperError`` for a pepper that cannot be had."""

    # Mutable state: opened, and the task that tries again; written by `start` and `_open`.
    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        deadlines: Deadlines,
        log: Any,
        on_bug: Callable[[str, BaseException], None],
        *,
        use_flags: Callable[[Flags], bool],
    ) -> None:
        state_dir = Path(settings.state_dir)
        pepper = load_pepper(settings.key_pepper, settings.state_dir)
        self._clock = clock
        self._log = log
        self.store = open_store(settings.database_url, state_dir, migrate=settings.database_migrate)
        self.opened = False
        """The store has answered since the process started; later `feed` knows whether it still does."""
        self._opening: asyncio.Task[None] | None = None
        tuning = Tuning(settings.key_fresh_s, settings.auth_stale_max_s, max_keys=settings.max_held_keys)
        self._key_level = None
        shared_keys = None
        if settings.cache_url and not settings.cache_url.startswith(DATABASES):  # the store is one of those itself
            codec = cast("Codec", KeyCodec(pepper.derive("shared-keys"), clock, tuning.fresh_s))
            self._key_level = make_shared_cache(
                settings.cache_url,
                b"",
                clock,
                max_bytes=_SHARED_KEY_BYTES,
                codec=codec,
                prefix=settings.cache_prefix,
                namespace="keys",
                purgeable=False,
                bounds=Bounds(get_s=settings.cache_timeout_ms / 1e3),
            )
            shared_keys = SharedKeyring(self._key_level, pepper.derive("shared-key-names"), tuning.fresh_s)
        digester = Digester(pepper.secret)
        self.ring = Keyring(digester, self.store, clock, tuning, shared=shared_keys)
        self.snapshot = SnapshotFile(
            self.ring,
            state_dir / FILE_NAME,
            pepper.derive("key-snapshot"),
            clock,
            log,
            database=mask_url(settings.database_url),
        )
        self.leases = BudgetLeases(
            self.store,
            HOLDER,
            clock,
            deadlines,
            wait_s=settings.budget_wait_s,
            lasts_s=settings.budget_lease_s,
            allow_when_down=settings.budget_when_store_down == "allow",
            on_bug=on_bug,
        )
        level = make_rate_level(settings.cache_url, settings.cache_prefix)
        self.shared_limits = SharedLimits(level, clock) if level is not None else None
        options = LimitOptions(
            burst_s=settings.limit_burst_s,
            parts=settings.limit_workers,
            refuse_unpriced=settings.budget_unpriced == "refuse",
        )
        self.limiter = Limiter(clock, self.leases, self.shared_limits, options)
        self.issuer = Issuer(self.store, digester, clock, self.ring.apply)
        self.feed = KeyFeed(self.ring, self.store, clock, log, on_allowance=self._allow)
        self.flags = FlagFeed(
            self.store,
            use_flags,
            clock,
            log,
            hears=lambda: self.feed.alive,
            snapshot=FlagSnapshot(state_dir / FLAGS_FILE, log, database=mask_url(settings.database_url)),
        )
        self.feed.on_news = self.flags.wake
        root = state_dir / "spool"
        self.spool = Spool(
            root,
            token=PROCESS_TOKEN,
            policy=settings.spool_policy,
            fsync=settings.spool_fsync,
            bound_bytes=settings.spool_bytes,
        )
        self.ledger = Ledger(root, self.spool, self.store, clock=clock, log=log, on_dead=self._bury)

    def add_duties(self, janitor: Janitor) -> None:
        janitor.add("store", 1.0, self._open_again)
        janitor.add("keys", 0.5, self.feed.tick)
        janitor.add("flags", 0.5, self.flags.tick)
        janitor.add("key_snapshot", 5.0, self.snapshot.tick)
        janitor.add("limits", 1.0, self.limiter.sweep)
        janitor.add("budgets", 0.25, self.leases.tick)
        if self.shared_limits is not None:
            janitor.add("shared_limits", 0.25, self.shared_limits.tick)

    async def start(self) -> None:
        """Open the spool and, if it answers in time, the store; one that is away is asked again and again. Raises
        ``StoreError`` where somebody has to act: a schema that is newer than this release, a URL that is wrong."""
        self.spool.start()
        await self._open()
        self.snapshot.restore()
        await self.flags.start(wait=self.opened)
        self.feed.start()
        self.ledger.start()

    async def _open(self) -> None:
        try:
            async with asyncio.timeout(_OPEN_S):
                await self.store.open()
                self.limiter.set_allowances(await self.store.list_allowances())
        except StoreError as error:
            if not error.transient:
                raise
            self._log.error("store_unavailable", why=str(error))
        except TimeoutError:
            self._log.error("store_unavailable", why="timeout")
        else:
            self.opened = True

    def _open_again(self) -> None:
        if not self.opened and (self._opening is None or self._opening.done()):
            self._opening = asyncio.get_running_loop().create_task(self._reopen())

    async def _reopen(self) -> None:
        try:
            await self._open()
        except StoreError as error:
            self._log.error("store_refused", why=str(error))

    async def close(self) -> None:
        """After the last exchange was accounted: what is known goes to the store, or stays on disk."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait((self._opening,))
        await self.feed.close()
        await self.flags.close()
        await self.ring.close()
        await self.snapshot.close()
        await self.leases.close()
        if self.shared_limits is not None:
            await self.shared_limits.close()
        await self.ledger.close()
        self.spool.close()
        if self._key_level is not None:
            await self._key_level.close()
        await self.store.close()

    @property
    def knows_keys(self) -> bool:
        """Virtual keys can be told from others: the store was read, or what a former process knew is here."""
        return self.opened or len(self.ring) > 0

    def keys_confirmed_age_s(self) -> float:
        """Seconds since the store last confirmed the keys in memory."""
        return self.ring.confirmed_age_s(self._clock.now())

    def _allow(self, allowance: Allowance) -> None:
        self.limiter.set_allowances((allowance,))

    async def _bury(self, token: str) -> None:
        """All usage of a dead process is in the store: give back what it had leased, whether or not that has lapsed,
        because whoever buries it may be dead itself by then."""
        holder = "req_" + token
        self.leases.recovered(holder)
        while held := {account for account, _, dead in await self.store.expired_leases(_ANY_S) if dead == holder}:
            for account in held:
                await self.store.settle_dead(account, holder)
