"""What slows guessing down, and what hashing a password costs; see `test_people.py` for both at a login."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from trainforge.config.errors import MessageInvalid, TooMany
from trainforge.sender.passwords import MAX_WAITING, THREADS, Passwords, check_password
from trainforge.sender.throttle import MAX_KEYS, LoginThrottles, Throttle

WORDS = "four quite unrelated words"


@pytest.mark.parametrize(
    "password",
    ["", "elevenchars", "x" * 257, "password1234", "trainforge2026!!", "aaaaaaaaaaaaaaaa", "vera.vera.12"],
)
def test_a_password_that_is_easily_guessed_is_refused(password: str) -> None:
    with pytest.raises(MessageInvalid, match="password"):
        check_password(password, "vera")
    check_password(WORDS, "vera")


def test_an_address_is_slowed_down_whatever_accounts_it_tries() -> None:
    throttles = LoginThrottles()
    for number in range(20):
        throttles.start(f"account{number}", "192.0.2.7", 0.0)
    throttles.start("more", "192.0.2.7", 0.0)
    with pytest.raises(TooMany):
        throttles.start("yet-another", "192.0.2.7", 0.5)
    throttles.start("yet-another", "192.0.2.8", 0.5)


def test_good_logins_do_not_buy_an_address_more_guesses() -> None:
    throttles, wrong = LoginThrottles(), 0
    for number in range(200):
        try:
            throttles.start("own", "192.0.2.7", 0.0)
            throttles.succeeded("own", "192.0.2.7")
            throttles.start(f"victim{number}", "192.0.2.7", 0.0)
        except TooMany:
            break
        wrong += 1
    assert wrong <= 21


def test_addresses_of_one_network_count_together() -> None:
    throttles = LoginThrottles()
    with pytest.raises(TooMany):
        for number in range(30):
            throttles.start(f"account{number}", f"2001:db8:1:2::{number:x}", 0.0)


def test_pauses_double_end_and_are_forgotten() -> None:
    throttle, now, pauses = Throttle(free=2, longest=60, forget_s=3600), 0.0, []
    for _ in range(12):
        throttle.start("a", now)
        pauses.append(throttle.wait("a", now))
        now += pauses[-1]
    assert pauses == [0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert throttle.wait("a", now + 3601) == 0
    throttle.start("a", now + 3601)
    assert throttle.wait("a", now + 3601) == 0
    for number in range(MAX_KEYS + 10):
        throttle.start(str(number), 0.0)
    assert len(throttle._tries) == MAX_KEYS


def test_hashing_leaves_the_event_loop_free_and_a_crowd_is_turned_away() -> None:
    passwords = Passwords()

    async def crowd() -> tuple[list[Any], int]:
        ticks = 0
        work = [
            asyncio.create_task(passwords.verify("guess", None)) for _ in range(THREADS + MAX_WAITING + 5)
        ]
        together = asyncio.gather(*work, return_exceptions=True)
        while not together.done():
            await asyncio.sleep(0)
            ticks += 1
        return await together, ticks

    said, ticks = asyncio.run(crowd())
    assert sum(isinstance(one, TooMany) for one in said) == 5
    assert [one for one in said if not isinstance(one, TooMany)] == [(False, "")] * (THREADS + MAX_WAITING)
    assert ticks > 100
