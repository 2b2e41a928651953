"""What every store promises about flags: changes whole or not at all, an audit of each, a way back, and the news."""

from __future__ import annotations

import asyncio
import time

import pytest

from proxy.config.feature_flags import Flag
from proxy.config.flag_changes import FlagChange, FlagEdit
from proxy.errors import StoreError
from proxy.store import flag_steps
from proxy.store.base import Store
from tests.fakes.databases import StoreMaker
from tests.fakes.gates import wait_until, within
from tests.fakes.usage import make_key

ACME = ("pruning", "tenant", "acme")
ALL = ("pruning", "global", "")
GUARD = ("guard:pii", "key", "key_0123456789abcdef")


async def rules_of(store: Store) -> dict[tuple[str, str, str], float]:
    stored = await store.read_flags()
    assert stored is not None
    return {(rule.name, rule.scope, rule.subject): rule.percent for rule in stored.flags.rules()}


async def put(store: Store, *rules: tuple[tuple[str, str, str], float | None], **words: str) -> list[FlagChange]:
    edits = [FlagEdit(*place, percent) for place, percent in rules]
    return await store.change_flags(edits, **{"who": "cli:ann@host", **words})


async def test_a_change_of_several_rules_is_one_change_with_who_when_and_why(store: Store) -> None:
    """The audit has each rule's before and after, under one number and one time of the store's."""
    made = await put(store, (ALL, 25.0), (GUARD, 0.0), why="an incident")

    assert await rules_of(store) == {ALL: 25.0, GUARD: 0.0}
    audit = await store.list_flag_changes()
    assert audit == made
    assert [(each.name, each.before, each.after) for each in audit] == [
        ("guard:pii", None, 0.0),
        ("pruning", None, 25.0),
    ]
    assert {(each.change, each.at) for each in audit} == {(made[0].change, made[0].at)}
    assert {(each.who, each.why, each.restores) for each in audit} == {("cli:ann@host", "an incident", None)}
    assert abs(time.time() - made[0].at) < 60.0


async def test_what_is_so_already_is_no_change(store: Store) -> None:
    """Who sets what is set, or clears what is not there, leaves no line in the audit and no news."""
    await put(store, (ALL, 0.0))
    before = await store.read_flags()
    assert before is not None

    assert await put(store, (ALL, 0.0), (ACME, None)) == []

    assert await store.read_flags(before.mark) is None
    assert len(await store.list_flag_changes()) == 1


async def test_a_cleared_rule_is_gone_and_its_end_is_in_the_audit(store: Store) -> None:
    """No rule is something else than a rule that says on."""
    await put(store, (ALL, 0.0), (ACME, 100.0))

    cleared = await put(store, (ALL, None))

    assert await rules_of(store) == {ACME: 100.0}
    assert [(each.before, each.after) for each in cleared] == [(0.0, None)]


async def test_replacing_clears_what_is_not_named(store: Store) -> None:
    """The rules are exactly those that were given, in one change."""
    await put(store, (ALL, 0.0), (ACME, 100.0))

    made = await store.replace_flags([FlagEdit(*GUARD, 0.0), FlagEdit(*ACME, 100.0)], who="admin")

    assert await rules_of(store) == {GUARD: 0.0, ACME: 100.0}
    assert [(each.name, each.before, each.after) for each in made] == [
        ("guard:pii", None, 0.0),
        ("pruning", 0.0, None),
    ]


async def test_each_rollback_goes_one_change_further_back(store: Store) -> None:
    """Three changes and three rollbacks end where there were no rules, and there is nothing behind that."""
    states = [{}]
    for rule in ((ALL, 0.0), (ACME, 50.0), (ALL, None)):
        await put(store, rule)
        states.append(await rules_of(store))

    for expected in reversed(states[:-1]):
        made = await store.roll_back_flags(who="cli:bob@host")
        assert await rules_of(store) == expected
        assert made[0].restores is not None

    assert made[0].restores == 0
    with pytest.raises(StoreError) as caught:
        await store.roll_back_flags(who="cli:bob@host")
    assert (caught.value.why, caught.value.transient) == ("unknown_change", False)


async def test_a_rollback_after_a_new_change_undoes_that_one(store: Store) -> None:
    """What was rolled back before stays rolled back."""
    await put(store, (ALL, 0.0))
    await put(store, (ACME, 50.0))
    await store.roll_back_flags(who="x")
    await put(store, (GUARD, 0.0))

    await store.roll_back_flags(who="x")

    assert await rules_of(store) == {ALL: 0.0}


async def test_a_rollback_to_a_change_restores_every_rule_as_it_was_after_it(store: Store) -> None:
    """However many changes lie between, and what did not change since is left alone."""
    await put(store, (GUARD, 10.0))
    first = await put(store, (ALL, 0.0), (ACME, 100.0))
    was = await rules_of(store)
    await put(store, (ALL, 10.0))
    await put(store, (ALL, 20.0), (ACME, None))
    await put(store, (("tiers", "route", "chat.completions"), 0.0))

    made = await store.roll_back_flags(first[0].change, who="x", why="as it was")

    assert await rules_of(store) == was
    assert {(each.restores, each.why) for each in made} == {(first[0].change, "as it was")}
    assert len(made) == 3
    await store.roll_back_flags(0, who="x")
    assert await rules_of(store) == {}


async def test_a_rollback_to_a_change_that_never_was_changes_nothing(store: Store) -> None:
    """A number between two changes, or beyond the last, is a mistake."""
    made = await put(store, (ALL, 0.0))

    for number in (made[0].change - 1, made[0].change + 1):
        if number:
            with pytest.raises(StoreError, match="there is no change"):
                await store.roll_back_flags(number, who="x")

    assert await rules_of(store) == {ALL: 0.0}


async def test_the_audit_comes_in_pages_of_whole_changes_and_by_flag(store: Store) -> None:
    """A page never ends in the middle of a change."""
    for percent in (10.0, 20.0, 30.0):
        await put(store, (ALL, percent), (ACME, percent), (GUARD, percent))
    await put(store, (("tiers", "global", ""), 0.0))

    first = await store.list_flag_changes(limit=2)
    second = await store.list_flag_changes(limit=2, before=first[-1].change)
    of_guard = await store.list_flag_changes(name="guard:pii", limit=2)

    assert [each.after for each in first] == [0.0, 30.0, 30.0, 30.0]
    assert [each.after for each in second] == [20.0] * 3 + [10.0] * 3
    assert [(each.name, each.after) for each in of_guard] == [("guard:pii", 30.0), ("guard:pii", 20.0)]


async def test_more_rules_than_fit_are_refused_as_a_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process holds all of them; what is there stays, and what makes it fewer is taken."""
    monkeypatch.setattr(flag_steps, "MAX_RULES", 2)
    await put(store, (ALL, 0.0), (ACME, 0.0))

    with pytest.raises(StoreError, match="2 at most") as caught:
        await put(store, (GUARD, 0.0), (ALL, 50.0))

    assert (caught.value.why, caught.value.transient) == ("invalid", False)
    assert await rules_of(store) == {ALL: 0.0, ACME: 0.0}
    await put(store, (GUARD, 0.0), (ALL, None))
    assert await rules_of(store) == {GUARD: 0.0, ACME: 0.0}


async def test_two_processes_that_change_at_one_time_make_two_changes(make_store: StoreMaker) -> None:
    """One after the other: the second finds what the first made of the rule."""
    stores = [await make_store() for _ in range(2)]

    made = await asyncio.gather(*(put(store, (ALL, 10.0 + n)) for n, store in enumerate(stores)))

    earlier, later = sorted((each[0] for each in made), key=lambda each: each.change)
    assert earlier.change < later.change
    assert (earlier.before, later.before) == (None, earlier.after)
    assert await rules_of(stores[0]) == {ALL: later.after}


async def test_a_change_of_flags_is_news_like_a_change_of_a_key(make_store: StoreMaker) -> None:
    """One number says whether anything is new; who asks for keys behind it finds none and is up to date."""
    writer, reader = await make_store(), await make_store()
    heard: list[int] = []
    watch = await reader.watch(heard.append)
    await wait_until(lambda: watch.alive, "the subscription")
    key = await writer.add_key(make_key(1))
    await wait_until(lambda: key.version in heard, "news of the key")

    made = await within(put(writer, (ALL, 0.0)), "the change")
    await wait_until(lambda: made[0].change in heard, "news of the flag")

    assert made[0].change > key.version
    changes = await reader.changes_since(key.version)
    assert (changes.keys, changes.version) == ([], made[0].change)
    await watch.close()


async def test_rules_are_read_again_only_when_they_changed(store: Store) -> None:
    """A poll costs one look at the last change."""
    empty = await store.read_flags()
    assert empty is not None
    assert await store.read_flags(empty.mark) is None
    await put(store, (ALL, 12.5))

    stored = await store.read_flags(empty.mark)

    assert stored is not None
    assert stored.flags.rules() == [Flag(*ALL, 12.5)]
    assert stored.flags.version == stored.mark.change > 0
    assert await store.read_flags(stored.mark) is None
