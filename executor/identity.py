"""Who this executor is and whom it obeys: its key, and what joining a sender agreed on."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ValidationError

from trainforge.config.errors import SettingsError
from trainforge.config.settings_load import write_private
from trainforge.config.trust import SigningKey, thumbprint

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

    @property
    def sender_keys(self) -> dict[str, dict[str, str]]:
        return {thumbprint(self.sender_key): self.sender_key}

    def save(self, data_dir: Path) -> None:
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
                hint="run `trainforge executor join URL TOKEN`, with what `trainforge sender token` prints",
            ) from error
        except (ValidationError, OSError) as error:
            raise SettingsError(f"{path} is damaged", hint="join the sender again") from error


def forget(data_dir: Path) -> None:
    """No sender is obeyed any more; the key stays for joining again."""
    (data_dir / IDENTITY_FILE).unlink(missing_ok=True)


def load_key(data_dir: Path) -> SigningKey:
    return SigningKey.load_or_create(data_dir / KEY_FILE)
