"""What an executor is to its sender, as that changes while it runs: keys, approval, removal."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from trainforge.config.errors import Forbidden, NotTrusted, TrainForgeError
from trainforge.config.messages import HeartbeatReply
from trainforge.config.settings import ExecutorSettings
from trainforge.config.trust import SigningKey, thumbprint
from trainforge.executor.identity import ExecutorIdentity, key_version, load_key

log = logging.getLogger(__name__)
REMOVED, UNKNOWN = "executor_removed", "executor_unknown"


class Standing:
    """`changed` is told of a new key of our own. `removed` is set once the sender wants us no more."""

    def __init__(
        self, settings: ExecutorSettings, identity: ExecutorIdentity, changed: Callable[[SigningKey], None]
    ) -> None:
        self._settings, self._identity, self._changed = settings, identity, changed
        self._version = key_version(settings.data_dir)
        self._said: dict[str, object] = {}
        self.removed = threading.Event()
        self.why: TrainForgeError = Forbidden("this executor was removed from the sender", code=REMOVED)
        self.trusts = True  # whether the sender's key is one that is known here

    def look_for_key(self) -> None:
        """Take up a key that `trainforge executor rotate-key` has put in the place of the old one."""
        if self._identity.ephemeral:
            return
        version = key_version(self._settings.data_dir)
        if version not in {0, self._version}:
            self._version = version
            key = load_key(self._settings.data_dir)
            self._changed(key)
            log.info("this executor's key is %s now", key.id)

    def heard(self, reply: HeartbeatReply) -> None:
        """Keep up with the sender's key, and tell the machine's owner what concerns them."""
        identity = self._identity
        if reply.introduction and reply.sender_key != thumbprint(identity.sender_key):
            try:
                identity.pin(reply.introduction, self._settings.data_dir)
                log.warning("the sender's key is %s now", reply.sender_key)
            except NotTrusted as error:
                log.warning("the sender's new key is not trusted: %s", error)
        self.trusts = not reply.sender_key or reply.sender_key == thumbprint(identity.sender_key)
        self._say(
            "key", not self.trusts, "the sender has a key that is not known here: no more work is taken"
        )
        approve = f"`trainforge executor approve {identity.name}`"
        self._say("pending", reply.pending, f"waits for approval: {approve} at the sender")
        self._say("notices", tuple(reply.notices), "; ".join(reply.notices))

    def refused(self, error: TrainForgeError) -> bool:
        """Whether this is the end: the sender has removed this executor.

        Of a visitor that never had a job it then knows nothing at all.
        """
        forgotten = self._identity.ephemeral and error.code == UNKNOWN
        if error.code != REMOVED and not forgotten:
            return False
        if not self.removed.is_set():
            self.why = error
            log.error("%s: its jobs are ended, no more work is taken", error.message)
            self.removed.set()
        return True

    def _say(self, about: str, state: object, words: str) -> None:
        if self._said.get(about, state if not state else None) != state:
            self._said[about] = state
            if state:
                log.warning("%s", words)
