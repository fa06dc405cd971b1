"""The sender's signing keys: the current one, and while the executors learn of it the one before.

The sender's id is its first key's and stays. A new key is introduced to each executor by a message that
the key it knows has signed; an executor that missed that, or a key that was withdrawn, needs a new join.
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import time
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from trainforge.config.errors import SettingsError
from trainforge.config.failpoints import failpoint
from trainforge.config.settings_load import write_private
from trainforge.config.trust import SigningKey, sign_introduction, thumbprint

if TYPE_CHECKING:
    from trainforge.sender.context import Sender

log = logging.getLogger(__name__)
CURRENT, PREVIOUS, ABOUT = "sender.key", "sender.key.previous", "sender.keys.json"
NONCE_LIFE_S = 300.0


@dataclass
class SenderKeys:
    """What the sender signs with. `pinned` has the key that each executor said it trusts."""

    current: SigningKey
    id: str = ""
    previous: SigningKey | None = None
    until: float = 0.0
    pinned: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.id = self.id or self.current.id

    @classmethod
    def load(cls, data_dir: Path) -> SenderKeys:
        """Raises SettingsError when a file is damaged."""
        current = SigningKey.load_or_create(data_dir / CURRENT)
        try:
            about = json.loads((data_dir / ABOUT).read_text())
            keys = cls(current, str(about["id"]), until=float(about["until"]))
        except FileNotFoundError:
            return cls(current)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SettingsError(f"{data_dir / ABOUT} is damaged", hint="restore it from a backup") from error
        if (data_dir / PREVIOUS).exists():
            previous = SigningKey.load_or_create(data_dir / PREVIOUS)
            keys.previous = previous if previous.id != current.id else None
        return keys

    def before(self, now: float) -> SigningKey | None:
        """The key before, while it counts."""
        return self.previous if now < self.until else None

    def signing(self, executor: str, now: float) -> SigningKey:
        """The key that this executor trusts for certain."""
        before = self.before(now)
        return before if before is not None and self.pinned.get(executor) != self.current.id else self.current

    def introduction(self, executor: str, knows: str, now: float) -> str:
        """The current key for an executor that knows the one before; empty if that does not help."""
        before = self.before(now)
        if before is None or knows != before.id:
            return ""
        return sign_introduction(
            before, sender=self.id, executor=executor, next_key=self.current.public, until=self.until, now=now
        )


def rotate(sender: Sender, actor: str, *, overlap: float) -> None:
    """Sign with a new key from now on; without an overlap every executor has to join again.

    Killed in between, the sender still has its old key.
    """
    now, keys, folder = sender.now(), sender.keys, sender.data_dir
    new = SigningKey.generate()
    old, until = keys.current, now + overlap
    if overlap > 0:
        old.save(folder / PREVIOUS)
    else:
        (folder / PREVIOUS).unlink(missing_ok=True)
    write_private(folder / ABOUT, {"id": keys.id, "until": until})
    new.save(folder / CURRENT)
    failpoint("47.sender.rotated")
    keys.previous, keys.until, keys.current = (old if overlap > 0 else None), until, new
    detail = {"fingerprint": new.id, "before": old.id, "until": until}
    sender.store.audit(actor, "sender.key_changed", keys.id, detail, now=now)
    log.warning("the sender's key is %s now", thumbprint(new.public))


class Nonces:
    """What is handed out to an executor whose clock differs, and accepted instead of its time.

    They need no table: each carries its own moment, by a steady clock, under a key of this process.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def new(self) -> str:
        return self._signed(f"{time.monotonic():.0f}")

    def fresh(self, nonce: str) -> bool:
        moment, _, _ = nonce.partition(".")
        if not (moment.isascii() and moment.isdigit() and len(moment) < 16):
            return False
        age = time.monotonic() - int(moment)
        return hmac.compare_digest(nonce.encode(), self._signed(moment).encode()) and age <= NONCE_LIFE_S

    def _signed(self, moment: str) -> str:
        return f"{moment}.{hmac.new(self._key, moment.encode(), sha256).hexdigest()}"
