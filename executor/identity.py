"""Who this executor is and whom it obeys: its key, and what joining a sender agreed on."""

from __future__ import annotations

import time
from pathlib import Path

from pydantic import BaseModel, ValidationError

from trainforge.config.errors import SettingsError
from trainforge.config.settings_load import write_private
from trainforge.config.trust import SigningKey, thumbprint, verify_introduction

KEY_FILE = "key.json"
IDENTITY_FILE = "identity.json"


class ExecutorIdentity(BaseModel):
    """What `trainforge executor join` leaves in the data directory; the private key lies beside it."""

    executor: str
    name: str
    sender: str
    sender_url: str
    sender_key: dict[str, str]
    lease_ttl: float
    previous_sender_key: dict[str, str] | None = None
    previous_until: float = 0.0
    pending: bool = False  # as it was when it joined
    ephemeral: bool = False  # nothing of it is kept: it ends with the process

    @property
    def sender_keys(self) -> dict[str, dict[str, str]]:
        """What the sender may sign with now."""
        known = [self.sender_key]
        if self.previous_sender_key is not None and time.time() < self.previous_until:
            known.append(self.previous_sender_key)
        return {thumbprint(key): key for key in known}

    def pin(self, introduction: str, data_dir: Path) -> None:
        """Trust the sender's next key, which the one known introduces, from now on and after a restart.

        Raises:
            NotTrusted: it does not.
        """
        known = self.sender_key
        key, seconds = verify_introduction(
            introduction, sender=self.sender, executor=self.executor, known=known
        )
        self.previous_sender_key, self.previous_until = known, time.time() + seconds
        self.sender_key = key
        self.save(data_dir)

    def save(self, data_dir: Path) -> None:
        if not self.ephemeral:
            write_private(data_dir / IDENTITY_FILE, self.model_dump())

    @classmethod
    def load(cls, data_dir: Path) -> ExecutorIdentity:
        """Raises SettingsError when this executor has not joined a sender."""
        path = data_dir / IDENTITY_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise SettingsError(
                "this executor has not joined a sender",
                hint="run `trainforge executor join URL TOKEN`, with what `trainforge sender token` prints; "
                "or, for `trainforge direct`, `trainforge executor trust KEY`",
            ) from error
        except (ValidationError, OSError) as error:
            raise SettingsError(f"{path} is damaged", hint="join the sender again") from error


def forget(data_dir: Path) -> None:
    """No sender is obeyed any more; the key stays for joining again."""
    (data_dir / IDENTITY_FILE).unlink(missing_ok=True)


def load_key(data_dir: Path) -> SigningKey:
    return SigningKey.load_or_create(data_dir / KEY_FILE)


def key_version(data_dir: Path) -> int:
    """Another number once the key file is another."""
    try:
        return (data_dir / KEY_FILE).stat().st_mtime_ns
    except OSError:
        return 0
