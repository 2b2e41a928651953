"""What the store does about flags; see `steps`.

Every change is one transaction under the lock of all records: who rolls back knows what it rolls back, and two that
change at one time are two changes, one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from proxy.config.feature_flags import Flag, Flags
from proxy.config.flag_changes import MAX_RULES, FlagChange, FlagEdit, FlagMark, StoredFlags
from proxy.errors import StoreError
from proxy.store import flag_sql, sql
from proxy.store.steps import Steps, now

_NEWEST: Final = (1 << 63) - 1
MAX_CHANGES: Final = 1_000
"""Changes in one answer."""

_Place = tuple[str, str, str]


def read_flags(seen: FlagMark | None) -> Steps[StoredFlags | None]:
    # Before the rules: those of a change that comes in between are read again with its own mark.
    mark, _ = yield from _last(_NEWEST)
    if mark == seen:
        return None
    known = yield from _rules()
    rules = [Flag(*place, percent) for place, percent in known.items()]
    return StoredFlags(Flags(rules, mark.change), mark)


def change_flags(edits: Sequence[FlagEdit], who: str, why: str) -> Steps[list[FlagChange]]:
    yield sql.LOCK_RECORDS, ()
    known = yield from _rules()
    wanted = {(edit.name, edit.scope, edit.subject): edit.percent for edit in edits}
    return (yield from _change(known, wanted, who, why, None))


def replace_flags(edits: Sequence[FlagEdit], who: str, why: str) -> Steps[list[FlagChange]]:
    yield sql.LOCK_RECORDS, ()
    known = yield from _rules()
    wanted: dict[_Place, float | None] = dict.fromkeys(known)
    wanted |= {(edit.name, edit.scope, edit.subject): edit.percent for edit in edits}
    return (yield from _change(known, wanted, who, why, None))


def roll_back_flags(to: int | None, who: str, why: str) -> Steps[list[FlagChange]]:
    yield sql.LOCK_RECORDS, ()
    if to is None:
        to = yield from _one_before_last()
    elif to:
        mark, _ = yield from _last(to)
        if mark.change != to:
            raise StoreError("unknown_change", f"there is no change {to}", transient=False)
    rows = yield flag_sql.WAS_AFTER, (to,)
    wanted = {(row["name"], row["scope"], row["subject"]): row["percent_before"] for row in rows}
    return (yield from _change((yield from _rules()), wanted, who, why, to))


def list_flag_changes(before: int | None, name: str, limit: int) -> Steps[list[FlagChange]]:
    page = (_NEWEST if before is None else before, max(1, min(limit, MAX_CHANGES)))
    if name:
        rows = yield flag_sql.LIST_CHANGES_OF, (*page, name)
    else:
        rows = yield flag_sql.LIST_CHANGES, page
    return [
        FlagChange(
            row["change"],
            row["name"],
            row["scope"],
            row["subject"],
            row["percent_before"],
            row["percent_after"],
            row["at"],
            row["who"],
            row["why"],
            row["restores"],
        )
        for row in rows
    ]


def _last(up_to: int) -> Steps[tuple[FlagMark, int | None]]:
    """The last change up to a number, and what it restored if it was a rollback."""
    rows = yield flag_sql.LAST_CHANGE, (up_to,)
    if not rows:
        return FlagMark(), None
    return FlagMark(rows[0]["change"], rows[0]["at"]), rows[0]["restores"]


def _one_before_last() -> Steps[int]:
    """The change before the one whose rules hold now. What a rollback brought back is taken for what it is, so each
    rollback goes one change further."""
    holds, restores = yield from _last(_NEWEST)
    while restores is not None:
        holds, restores = yield from _last(restores)
    if not holds.change:
        raise StoreError("unknown_change", "there is no change to roll back", transient=False)
    before, _ = yield from _last(holds.change - 1)
    return before.change


def _rules() -> Steps[dict[_Place, float]]:
    rows = yield flag_sql.LIST_FLAGS, ()
    return {(row["name"], row["scope"], row["subject"]): row["percent"] for row in rows}


def _change(
    known: Mapping[_Place, float], wanted: Mapping[_Place, float | None], who: str, why: str, restores: int | None
) -> Steps[list[FlagChange]]:
    """Make the rules what is wanted of them; what they are already is no change."""
    places = sorted(place for place, percent in wanted.items() if known.get(place) != percent)
    if not places:
        return []
    rules = len(known) + sum((wanted[place] is not None) - (place in known) for place in places)
    if rules > MAX_RULES and rules > len(known):
        raise StoreError("invalid", f"that would be {rules} rules; {MAX_RULES} at most", transient=False)
    at = yield from now()
    change = int((yield flag_sql.NEXT_VERSION, ())[0]["version"])
    made = []
    for place in places:
        before, after = known.get(place), wanted[place]
        if after is None:
            yield flag_sql.DROP_FLAG, place
        else:
            yield flag_sql.PUT_FLAG, (*place, after)
        made.append(FlagChange(change, *place, before, after, at, who, why, restores))
        yield flag_sql.RECORD_CHANGE, tuple(made[-1])
    return made
