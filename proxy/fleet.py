"""The targets of the catalog and what is known of them: made once, told of each new catalog, closed in order."""

from __future__ import annotations

import random
from typing import Any

from proxy.clock import Clock, Deadlines
from proxy.config.catalog import Catalog
from proxy.config.prices import Price
from proxy.config.settings import Settings
from proxy.failover.failover import Failover
from proxy.janitor import Janitor
from proxy.listing import Listing
from proxy.model_lists import ProviderLists, asking_headers, fetch_list
from proxy.providers.kinds import make_providers
from proxy.telemetry.metrics import Metrics
from proxy.upstream.batching import Batcher
from proxy.upstream.credentials import Credentials
from proxy.upstream.health import Health, TargetHealth, TargetLimits
from proxy.upstream.outbound import Outbound
from proxy.upstream.retries import RetryGates, RetryRules
from proxy.upstream.warm import KeepWarm


class Fleet:
    """Built by the app; `adopt` is called with the first catalog and after each reload. Needs a running loop."""

    def __init__(  # noqa: PLR0917 - what it is made of
        self,
        settings: Settings,
        clock: Clock,
        deadlines: Deadlines,
        transport: Outbound,
        metrics: Metrics,
        log: Any,
    ) -> None:
        self._clock = clock
        self._catalog: Catalog | None = None
        self.dialects = make_providers()
        self._log = log
        self.health = Health(clock, deadlines, on_change=self._tell_change)
        self.gates = RetryGates(clock, RetryRules(ratio=settings.retry_percent / 100))
        self.credentials = Credentials(clock, random.Random())  # noqa: S311 - spreads, protects nothing
        self.batcher = Batcher(
            clock, deadlines, transport, observe_size=metrics.embedding_batch_size.observe
        )
        self.warm = KeepWarm(clock, transport, asking_headers, bug=metrics.bug)
        lists = ProviderLists(
            clock, lambda provider, target: fetch_list(transport, provider, target), bug=metrics.bug
        )
        self.listing = Listing(clock, lists)
        self.failover = Failover(
            clock=clock,
            deadlines=deadlines,
            transport=transport,
            batcher=self.batcher,
            health=self.health,
            gates=self.gates,
            credentials=self.credentials,
            providers=self.dialects,
            find_price=self._find_price,
            log=log,
            connect_s=settings.connect_timeout_s,
        )

    def adopt(self, catalog: Catalog) -> None:
        """These are the targets from now on. What is known of those that stay is kept."""
        self._catalog = catalog
        self.failover.forget()
        models = catalog.models
        every = [*models.by_name.values(), *(model for _, model in models.patterns)]
        targets = {target.id: target.provider for model in every for target in model.targets}
        limits = {
            name: TargetLimits(provider.max_in_flight, provider.max_queue, provider.queue_s)
            for name, provider in targets.items()
        }
        self.health.keep(limits)
        self.gates.keep(targets)
        self.credentials.keep({name: provider.keys for name, provider in catalog.providers.items()})
        self.warm.keep(catalog.providers.values())

    def _tell_change(self, target: TargetHealth) -> None:
        state = target.breaker.state.name.lower()
        level = self._log.warning if state == "open" else self._log.info
        level("target_" + state, target=target.id)

    def _find_price(self, model: str) -> Price | None:
        return self._catalog.prices.find(model) if self._catalog is not None else None

    def add_duties(self, janitor: Janitor) -> None:
        janitor.add("targets", 0.1, lambda: self.health.sweep(self._clock.now()))
        janitor.add("keep_warm", 1.0, lambda: self.warm.sweep(self._clock.now()))

    def describe(self) -> dict[str, Any]:
        """For the admin API; names of keys, never values."""
        return {
            "targets": self.health.describe(),
            "retries": self.gates.describe(),
            "keys": self.credentials.describe(),
            "keep_warm": self.warm.describe(),
            "model_lists": self.listing.describe(),
            "hedges": {"started": self.failover.hedges_started, "won": self.failover.hedges_won},
        }

    async def close(self) -> None:
        """Nothing is opened ahead and nothing gathers any more; what is under way goes on."""
        self.batcher.close()
        await self.warm.close()
        await self.listing.lists.close()
