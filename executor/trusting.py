"""Taking orders from a key alone: one-shot senders, which have no address to join at."""

from __future__ import annotations

import contextlib

from trainforge.config.errors import Conflict, SettingsError
from trainforge.config.settings import ExecutorSettings
from trainforge.config.trust import executor_id, parse_public_text, thumbprint
from trainforge.executor.identity import ExecutorIdentity, load_key
from trainforge.executor.program import only_one

LEASE_TTL_S = 90.0


def trust(settings: ExecutorSettings, text: str) -> ExecutorIdentity:
    """Serve the senders that sign with this key, from the next start on.

    Raises:
        NotTrusted: not a public key. Conflict: this executor belongs to a sender that it has joined.
        SettingsError: an executor runs here.
    """
    key = parse_public_text(text)
    with only_one(settings.data_dir):
        known = None
        with contextlib.suppress(SettingsError):
            known = ExecutorIdentity.load(settings.data_dir)
        if known is not None and known.sender_url:
            raise Conflict(
                f"this executor belongs to {known.sender_url}",
                hint="`trainforge executor leave` parts it from there, or use another --data-dir",
            )
        identity = ExecutorIdentity(
            executor=executor_id(load_key(settings.data_dir).public),
            name=settings.name,
            sender=thumbprint(key),
            sender_url="",
            sender_key=key,
            lease_ttl=LEASE_TTL_S,
        )
        identity.save(settings.data_dir)
    return identity
