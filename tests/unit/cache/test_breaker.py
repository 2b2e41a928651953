"""The breaker in front of the shared cache."""

from proxy.cache.breaker import Breaker


def fail(breaker: Breaker, now: float, times: int = 1) -> None:
    for _ in range(times):
        assert breaker.admit(now)
        breaker.fail(now)


def test_breaker_opens_after_three_failures_in_a_row():
    """A success in between starts the count anew."""
    breaker = Breaker()
    fail(breaker, 0.0, times=2)
    assert breaker.admit(0.0)
    breaker.succeed()
    fail(breaker, 0.0, times=3)
    assert not breaker.admit(0.0)
    assert breaker.opened == 1


def test_open_breaker_lets_one_call_try_after_five_seconds():
    """And only one, until that call has ended."""
    breaker = Breaker()
    fail(breaker, 10.0, times=3)
    assert [breaker.admit(now) for now in (14.9, 15.0, 15.0, 99.0)] == [False, True, False, False]


def test_success_of_the_one_call_closes_the_breaker():
    """Everybody may ask again."""
    breaker = Breaker()
    fail(breaker, 10.0, times=3)
    assert breaker.admit(15.0)
    breaker.succeed()
    assert [breaker.admit(15.0) for _ in range(3)] == [True, True, True]


def test_failure_of_the_one_call_opens_the_breaker_again():
    """For another five seconds, without three more failures."""
    breaker = Breaker()
    fail(breaker, 10.0, times=3)
    fail(breaker, 15.0)
    assert [breaker.admit(now) for now in (19.9, 20.0)] == [False, True]
    assert breaker.opened == 2


def test_cancelled_try_makes_room_for_the_next():
    """A caller that went away tells nothing about the cache."""
    breaker = Breaker()
    fail(breaker, 10.0, times=3)
    assert breaker.admit(15.0)
    breaker.withdraw()
    assert breaker.admit(15.0)


def test_calls_that_were_under_way_when_it_opened_open_it_no_further():
    """A crowd that meets a hang is one opening."""
    breaker = Breaker(allow_failures=3, open_s=5.0)
    for _ in range(50):
        assert breaker.admit(0.0)
    for _ in range(50):
        breaker.fail(0.1)
    assert (breaker.opened, breaker.open) == (1, True)
    assert breaker.admit(5.1)
    breaker.fail(5.2)
    assert breaker.opened == 2
