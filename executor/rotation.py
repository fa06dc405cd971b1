"""Another key for the same executor, made here and announced by the old one.

The new key lies beside the old one until the sender has it, so that whoever is interrupted goes on with
the same: announcing a key twice changes nothing, and the old one is good for a while, too.
"""

from __future__ import annotations

from trainforge.config.errors import NotTrusted
from trainforge.config.messages import KeyChange
from trainforge.config.settings import ExecutorSettings
from trainforge.config.trust import SigningKey, sign_request
from trainforge.executor.identity import KEY_FILE, ExecutorIdentity, load_key
from trainforge.executor.link import SenderLink

NEXT_FILE = "key.next.json"


def rotate_key(settings: ExecutorSettings) -> SigningKey:
    """Change the key; a running executor takes it up by itself.

    Raises:
        SettingsError: not joined. Unreachable: the sender was not told; repeat it.
    """
    folder = settings.data_dir
    identity = ExecutorIdentity.load(folder)
    if settings.sender_url:
        identity = identity.model_copy(update={"sender_url": settings.sender_url})
    new = SigningKey.load_or_create(folder / NEXT_FILE)
    link = SenderLink(identity, load_key(folder))
    try:
        _announce(link, identity, new)
    finally:
        link.close()
    (folder / NEXT_FILE).replace(folder / KEY_FILE)
    return new


def finish_rotation(settings: ExecutorSettings) -> None:
    """Go on with a change that was interrupted, if there is one."""
    if (settings.data_dir / NEXT_FILE).exists():
        rotate_key(settings)


def _announce(link: SenderLink, identity: ExecutorIdentity, new: SigningKey) -> None:
    proof = sign_request(
        new,
        subject=identity.executor,
        audience=identity.sender,
        method="KEY",
        path=identity.executor,
        body=b"",
        now=0,
    )
    message = KeyChange(public_key=new.public, proof=proof)
    try:
        link.change_key(message)
    except NotTrusted:  # interrupted so long ago that the old key is over: the sender knows the new one
        link.key = new
        link.change_key(message)
