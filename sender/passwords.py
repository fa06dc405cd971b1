"""Passwords: what makes one good enough, and argon2id on a few threads of its own.

Hashing takes memory and time on purpose. Two at once are worked on and a few wait, so that a flood of logins
cannot take the machine's memory, nor the event loop's time. An unknown account costs the same as a known one.
"""

from __future__ import annotations

import asyncio
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from trainforge.config.errors import MessageInvalid, TooMany

MIN_LENGTH = 12
MAX_LENGTH = 256
THREADS = 2
MAX_WAITING = 16
_COMMON = ("password", "trainforge", "123456789012", "qwertyuiop", "letmein")


def check_password(password: str, name: str) -> None:
    """Length is what counts; only what anyone would try first is refused besides.

    Raises:
        MessageInvalid: too short, too long or too obvious.
    """
    hint = f"take at least {MIN_LENGTH} characters, such as four words with nothing in common"
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise MessageInvalid(f"a password has {MIN_LENGTH} to {MAX_LENGTH} characters", hint=hint)
    rest = password.lower()
    for obvious in (name.lower(), *_COMMON):
        rest = rest.replace(obvious, "")
    if len(rest.strip("0123456789 .!-_")) < 4 or len(set(password)) < 5:
        raise MessageInvalid("this password is easily guessed", hint=hint)


class Passwords:
    """One per sender; its threads end with the process."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher(time_cost=2, memory_cost=32 * 1024, parallelism=1)
        self._threads = ThreadPoolExecutor(THREADS, "passwords")
        self._waiting = 0

    @cached_property
    def _nobodys(self) -> str:
        return self._hasher.hash("the password of nobody")

    async def hash(self, password: str) -> str:
        return await self._work(password, None) or ""

    async def verify(self, password: str, hashed: str | None) -> tuple[bool, str]:
        """Whether it is the password, and the hash to keep from now on where the old one is out of use.

        Without a hash it takes as long and is not.
        """
        renewed = await self._work(password, hashed or "")
        return (hashed is not None and renewed is not None), renewed or ""

    async def _work(self, password: str, hashed: str | None) -> str | None:
        if self._waiting >= THREADS + MAX_WAITING:
            raise TooMany("too many log in at this moment", retry_after=2)
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self._hash_or_check, password, hashed)
        finally:
            self._waiting -= 1

    def _hash_or_check(self, password: str, hashed: str | None) -> str | None:
        """A new hash; or for a given one a newer, an empty one to keep it, and None for a wrong password."""
        text = unicodedata.normalize("NFKC", password)
        if hashed is None:
            return self._hasher.hash(text)
        nobodys = self._nobodys  # made now if ever, so that the first unknown account takes no longer either
        known = hashed or nobodys
        try:
            self._hasher.verify(known, text)
        except (VerificationError, InvalidHashError):
            return None
        return self._hasher.hash(text) if self._hasher.check_needs_rehash(known) else ""
