"""Logging in: throttled, as slow for unknown accounts as for known ones, and noted in the audit log."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from trainforge.config.errors import NotFound, NotTrusted
from trainforge.sender.passwords import Passwords, check_password
from trainforge.sender.people import Account
from trainforge.sender.throttle import LoginThrottles

if TYPE_CHECKING:
    from trainforge.sender.context import Sender

WRONG = "This is not the name and password of an account here."
TOLD_A_MINUTE = 30
MAX_NAME = 64


class Logins:
    """One per sender."""

    def __init__(self) -> None:
        self.passwords = Passwords()
        self.throttles = LoginThrottles()
        self._minute = 0
        self._told = self._untold = 0

    async def by_password(self, sender: Sender, name: str, password: str, address: str) -> str:
        """The name of the account that this is the password of.

        Raises:
            NotTrusted: it is not. TooMany: it was not even looked at.
        """
        name = name.strip().lower()[:MAX_NAME]
        self.throttles.start(name, address, sender.now())
        account = await asyncio.to_thread(_account, sender, name)
        good, renewed = await self.passwords.verify(password, account.password if account else None)
        if not good or account is None:
            await self.failed(sender, name, address)
            raise NotTrusted(WRONG)
        self.throttles.succeeded(name, address)
        if renewed and account.password:
            await asyncio.to_thread(sender.people.renew_hash, account.id, account.password, renewed)
        return account.name

    async def by_token(self, sender: Sender, token: str, address: str) -> str:
        """The account of an access token; only one that has an account opens the pages.

        Raises:
            NotTrusted: not valid, or without an account. TooMany: it was not even looked at.
        """
        self.throttles.start("", address, sender.now())
        person = await asyncio.to_thread(sender.people.by_token, token, sender.now())
        if person is None or person.user is None:
            await self.failed(sender, "", address)
            raise NotTrusted("This is not a token that is valid here.")
        self.throttles.succeeded("", address)
        return person.name

    async def by_link(self, sender: Sender, secret: str) -> str:
        """The account that a one-time link is for. Not throttled: nobody can guess one.

        Raises:
            NotTrusted: used, or too old.
        """
        name = await asyncio.to_thread(sender.people.use_link, secret, sender.now())
        if name is None:
            raise NotTrusted("This link was used, or is too old.")
        return name

    async def change_password(
        self,
        sender: Sender,
        name: str,
        password: str,
        *,
        by: str,
        current: str | None = None,
        address: str = "",
    ) -> None:
        """Set a password; whoever gives the `current` one is asked for it like at a login.

        Raises:
            MessageInvalid: not good enough. NotTrusted, TooMany: as for a login. NotFound: no such account.
        """
        check_password(password, name)
        if current is not None:
            await self.by_password(sender, name, current, address)
        await self.set_password(sender, name, password, by=by)

    async def set_password(self, sender: Sender, name: str, password: str, *, by: str) -> None:
        """One that was found good enough. Raises NotFound: no such account."""
        hashed = await self.passwords.hash(password)
        await asyncio.to_thread(sender.people.set_password, name, hashed, sender.now(), by=by)

    async def failed(self, sender: Sender, name: str, address: str) -> None:
        """Note a failed login; beyond some a minute only their number."""
        minute = int(sender.now() // 60)
        if minute != self._minute:
            self._minute, self._told = minute, 0
        if self._told >= TOLD_A_MINUTE:
            self._untold += 1
            return
        self._told += 1
        detail = {"address": address} | ({"not_noted_before": self._untold} if self._untold else {})
        self._untold = 0
        await asyncio.to_thread(
            sender.store.audit, f"address:{address}", "login.failed", name, detail, now=sender.now()
        )


def _account(sender: Sender, name: str) -> Account | None:
    try:
        return sender.people.account(name)
    except NotFound:
        return None
