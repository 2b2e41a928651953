"""What is remembered of tiers."""

from __future__ import annotations

from proxy.policy.tier_memory import HELD_S, MAX_COUNTED, Asked, Conversation, TierMemory
from proxy.policy.tiers import Choice

SIMPLE = Choice(0, "simple", "small", (), 0, drops_tools=False)


def asked(number: int = 0) -> Asked:
    return Asked("auto", 1, number.to_bytes(16, "big"), "", 7)


def talk(number: int = 0) -> Conversation:
    return Conversation("auto", number.to_bytes(16, "big"), 7)


def test_an_equal_request_finds_the_choice_for_five_minutes_after_the_last() -> None:
    """As long as they keep coming it does not change under them."""
    memory = TierMemory()
    memory.keep(asked(), SIMPLE, 0.0)

    assert memory.find(asked(), HELD_S - 1) == SIMPLE
    assert memory.find(asked(), 2 * HELD_S - 2) == SIMPLE
    assert memory.find(asked(), 3 * HELD_S - 2) is None
    assert memory.reused == 2


def test_a_request_that_differs_in_anything_finds_nothing() -> None:
    """Model, description, user, tier, body."""
    memory = TierMemory()
    memory.keep(asked(), SIMPLE, 0.0)
    others = [asked()._replace(**change) for change in ({"name": "x"}, {"version": 2}, {"tier": "x"}, {"body": 8})]

    assert [memory.find(each, 1.0) for each in (*others, asked(1))] == [None] * 5


def test_a_conversation_only_rises_until_it_was_silent_for_five_minutes() -> None:
    """A later simple question does not bring it down."""
    memory = TierMemory()
    memory.rise(talk(), 2, 0.0)
    memory.rise(talk(), 0, 200.0)

    assert memory.least(talk(), 200.0 + HELD_S - 1) == 2
    assert memory.least(talk(), 200.0 + HELD_S) == 0
    assert memory.least(talk(1), 1.0) == 0


def test_a_users_messages_are_counted() -> None:
    """Each user's on their own."""
    memory = TierMemory()

    assert [memory.count_message(b"one"), memory.count_message(b"one"), memory.count_message(b"two")] == [0, 1, 0]


def test_memory_is_bounded_and_the_least_lately_used_goes_first() -> None:
    """However many users there are."""
    memory = TierMemory(most_choices=3, most_conversations=3, most_users=3)
    for number in range(100):
        memory.keep(asked(number), SIMPLE, 0.0)
        memory.rise(talk(number), 1, 0.0)
        memory.count_message(b"%d" % number)
        assert memory.find(asked(0) if number < 2 else asked(number - 1), 0.0) is not None

    assert memory.sizes() == {"choices": 3, "conversations": 3, "users": 3}
    assert memory.evicted == 3 * 97
    assert memory.find(asked(99), 1.0) == SIMPLE
    assert memory.count_message(b"99") == 1
    assert memory.count_message(b"0") == 0


def test_what_was_used_lately_stays() -> None:
    """Looking counts as well as writing."""
    memory = TierMemory(most_choices=2, most_conversations=2, most_users=2)
    for number in (0, 1, 0, 2):
        memory.count_message(b"%d" % number)
        memory.rise(talk(number), 1, 0.0)
    memory.keep(asked(0), SIMPLE, 0.0)
    memory.keep(asked(1), SIMPLE, 0.0)
    memory.find(asked(0), 1.0)
    memory.keep(asked(2), SIMPLE, 0.0)

    assert memory.count_message(b"0") == 2
    assert [memory.least(talk(number), 1.0) for number in range(3)] == [1, 0, 1]
    assert [memory.find(asked(number), 1.0) for number in range(3)] == [SIMPLE, None, SIMPLE]


def test_requests_are_counted_by_name_up_to_a_bound() -> None:
    """A catalog whose names change all day does not fill the metrics."""
    memory = TierMemory()
    for number in range(MAX_COUNTED + 5):
        memory.count("auto", f"t{number}", shadow=False)
    memory.count("auto", "t0", shadow=False)
    memory.count("auto", "new", shadow=True)

    assert memory.chosen["auto", "t0", "acted"] == 2
    assert memory.chosen["other", "other", "acted"] == 5
    assert memory.chosen["other", "other", "shadow"] == 1
    assert len(memory.chosen) == MAX_COUNTED + 2
