"""Hours of the day, days of the week, and texts with holes."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from proxy.config.hours import DAYS, When, find_zone, read_hours
from proxy.config.template import MAX_FILLING_CHARS, Hole, Template, read_template

FRIDAY = datetime(2026, 1, 2, tzinfo=UTC)


def at(hour: int, minute: int = 0, day: int = 0) -> datetime:
    """So many days after a Friday."""
    return FRIDAY.replace(day=2 + day, hour=hour, minute=minute)


def test_hours_hold_from_the_first_minute_to_before_the_last() -> None:
    """05:00-12:00 and 12:00-18:00 leave no gap and do not overlap."""
    when = When(*read_hours("05:00-12:00"))
    assert [when.holds(each) for each in (at(4, 59), at(5), at(11, 59), at(12))] == [False, True, True, False]


def test_hours_over_midnight_belong_to_the_day_on_which_they_began() -> None:
    """Friday night is over on Saturday morning."""
    when = When(*read_hours("22:00 - 05:00"), frozenset({DAYS.index("fri")}))
    assert [when.holds(each) for each in (at(21), at(22), at(4, day=1), at(5, day=1), at(23, day=1), at(4))] == [
        False, True, True, False, False, False,
    ]  # fmt: skip


def test_a_day_may_end_at_24() -> None:
    """Midnight is its end."""
    assert When(*read_hours("18:00-24:00")).holds(at(23, 59))


@pytest.mark.parametrize("text", ["", "5-12", "05:00", "25:00-26:00", "24:00-05:00", "05:60-06:00", "05:00-05:00"])
def test_hours_that_are_none_are_refused(text: str) -> None:
    """With words that say why."""
    with pytest.raises(ValueError, match=r"expected|a day has|same time"):
        read_hours(text)


@pytest.mark.parametrize("name", ["", "Europe/Atlantis", "../../etc/passwd", "/etc/localtime", "Europe", "\x00"])
def test_a_zone_that_is_none_is_refused(name: str) -> None:
    """Whatever the name would mean to the file system."""
    with pytest.raises(ValueError, match="no time zone"):
        find_zone(name)


def test_holes_are_filled_and_braces_can_be_written() -> None:
    """Nothing else of a text means anything."""
    template = read_template("{{x}} {name|friend}, {time} {0}".replace(" {0}", " %s"))
    assert template.holes == [Hole("name", "friend"), Hole("time", None)]
    assert template.fill({"time": "10:00"}) == "{x} friend, 10:00 %s"
    assert template.fill({"time": "10:00", "name": "Ada"}) == "{x} Ada, 10:00 %s"


def test_a_filling_is_bounded_and_has_no_control_characters() -> None:
    """It may come from a caller, and is said once, not read again as a template."""
    template = Template((Hole("name", None),))
    said = template.fill({"name": "a\x00\n\u202eb{time}" + "c" * 100})
    assert said == ("a b{time}" + "c" * 100)[:MAX_FILLING_CHARS]


@pytest.mark.parametrize("text", ["{", "a }", "{}", "{a.b}", "{a[0]}", "{a!r}", "{a:>9}", "{1}", "{a b}", "{{a}"])
def test_a_text_with_something_else_in_braces_is_refused(text: str) -> None:
    """Formats, attributes and indices are never evaluated, so they are no templates."""
    with pytest.raises(ValueError, match=r"lone|no variable"):
        read_template(text)


def test_a_text_has_a_bounded_number_of_holes() -> None:
    """Thirty-two will do."""
    with pytest.raises(ValueError, match="more than 32"):
        read_template("{time}" * 33)
