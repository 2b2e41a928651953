"""Making and ending keys when the database fails in between."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.access.issuing import Issuer, NoSuchKeyError
from proxy.config.keys import KeyRecord
from proxy.errors import StoreError
from tests.fakes.clock import FrozenClock
from tests.fakes.keys import DIGESTER, FakeKeys


class Flaky(FakeKeys):
    """Fails at one of its changes."""

    fails_at = 0

    async def change_key(self, key_id: str, changes: Any) -> KeyRecord | None:
        self.fails_at -= 1
        if self.fails_at == 0:
            raise StoreError("unavailable")
        return await super().change_key(key_id, changes)


async def test_whoever_made_a_change_sees_it_before_the_answer(frozen_clock: FrozenClock) -> None:
    """The process that revokes does not have to hear of it first."""
    told: list[KeyRecord] = []
    issuer = Issuer(FakeKeys(), DIGESTER, frozen_clock, told.append)
    made = await issuer.create({"name": "ci"})
    await issuer.change("ci", {"tags": ["x"]})
    await issuer.revoke(made.record.id)

    assert [(record.version, bool(record.revoked_at)) for record in told] == [(1, False), (2, False), (3, True)]
    assert made.token not in repr(made)
    assert told[0].digest == DIGESTER.digest(made.token.encode())


async def test_a_rotation_that_fails_halfway_leaves_the_old_key_as_it_was(frozen_clock: FrozenClock) -> None:
    """And the new one, which nobody was shown, is ended."""
    keys = Flaky()
    issuer = Issuer(keys, DIGESTER, frozen_clock)
    old = (await issuer.create({"name": "ci"})).record
    keys.fails_at = 1
    with pytest.raises(StoreError):
        await issuer.rotate("ci", 0.0)

    assert await keys.get_key(old.id) == old
    assert [each.id for each in await keys.list_keys()] == [old.id]


async def test_a_rotation_whose_last_step_fails_still_hands_out_the_key(frozen_clock: FrozenClock) -> None:
    """It works under the name that it has so far."""
    keys = Flaky()
    issuer = Issuer(keys, DIGESTER, frozen_clock)
    old = (await issuer.create({"name": "ci"})).record
    keys.fails_at = 2
    issued = await issuer.rotate("ci", 60.0)

    assert issued.record.name.startswith("ci (new ")
    assert DIGESTER.digest(issued.token.encode()) == issued.record.digest
    assert keys.by_id[old.id].expires_at == frozen_clock.wall() + 60


async def test_a_rotation_does_not_prolong_a_key(frozen_clock: FrozenClock) -> None:
    """What would have ended within the grace ends when it would have."""
    issuer = Issuer(keys := FakeKeys(), DIGESTER, frozen_clock)
    old = (await issuer.create({"name": "ci", "expires": frozen_clock.wall() + 10})).record
    new = (await issuer.rotate("ci", 3600.0)).record

    assert keys.by_id[old.id].expires_at == new.expires_at == frozen_clock.wall() + 10


async def test_a_key_of_another_tenant_is_not_found(frozen_clock: FrozenClock) -> None:
    """Neither by its name nor by its id."""
    issuer = Issuer(FakeKeys(), DIGESTER, frozen_clock)
    record = (await issuer.create({"name": "ci", "tenant": "acme"})).record
    assert (await issuer.find(record.id, "acme")).id == record.id

    for name in ("ci", record.id):
        with pytest.raises(NoSuchKeyError):
            await issuer.find(name, "other")
