"""What the sender keeps encrypted: the secrets of repositories, and tokens and keys of its own.

The key that they are encrypted with lies beside the database, in a file of its own (`secrets.key`), so that
a copy of the database opens nothing. While the key is being changed the file has both, the new one first.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainforge.config.errors import NotTrusted, SettingsError, TrainForgeError
from trainforge.config.sealing import StoredKey
from trainforge.config.settings_load import write_private
from trainforge.sender.context import Sender
from trainforge.sender.store_secrets import OWN, StoredSecret

KEY_FILE = "secrets.key"
KEYS = threading.Lock()  # held while something is encrypted with a key, or the key is changed


def keep(sender: Sender, name: str, value: Mapping[str, Any]) -> None:
    """Keep something of the sender's own, such as a token, encrypted as secrets are."""
    with KEYS:
        sealed = encrypt(read_keys(sender)[0], OWN, name, json.dumps(value))
        sender.store.put_document(OWN, name, {"sealed": sealed}, sender.now())


def kept(sender: Sender, name: str) -> dict[str, Any]:
    """What was kept under that name; empty if nothing was."""
    found = sender.store.document(OWN, name)
    if found is None:
        return {}
    opened = decrypt(keys_of(sender), StoredSecret(OWN, name, found["sealed"], [], 0, ""))
    value: dict[str, Any] = json.loads(opened)
    return value


def forget(sender: Sender, name: str) -> None:
    sender.store.drop_document(OWN, name)


# --- keys ----------------------------------------------------------------------------------------------


def encrypt(key: StoredKey, repository_id: str, name: str, value: str) -> str:
    return key.encrypt(json.dumps({"repository": repository_id, "name": name, "value": value}))


def decrypt(keys: Sequence[StoredKey], secret: StoredSecret) -> str:
    """The value; what is kept opens under its own name alone, wherever in the database it was moved."""
    for key in keys:
        try:
            kept = json.loads(key.decrypt(secret.sealed))
        except NotTrusted:
            continue
        if (kept["repository"], kept["name"]) == (secret.repository_id, secret.name):
            return str(kept["value"])
    raise TrainForgeError(
        f"the secret {secret.name} does not open with the sender's {KEY_FILE}",
        hint="restore that file, or set the secret again",
        code="secret_missing",
    )


def keys_of(sender: Sender) -> list[StoredKey]:
    with KEYS:
        return read_keys(sender)


def read_keys(sender: Sender) -> list[StoredKey]:
    """The newest first; the first one is made where there is none."""
    path = _path(sender)
    try:
        found = [StoredKey(str(one["kid"]), str(one["k"])) for one in json.loads(path.read_text())["keys"]]
    except FileNotFoundError:
        found = [StoredKey.generate()]
        write_keys(sender, found)
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{path} is damaged", hint="restore it from a backup") from error
    return found


def write_keys(sender: Sender, keys: Sequence[StoredKey]) -> None:
    write_private(_path(sender), {"keys": [asdict(key) for key in keys]})


def _path(sender: Sender) -> Path:
    return sender.data_dir / KEY_FILE
