"""Parting with a sender, the opposite of joining it."""

from __future__ import annotations

import logging

from trainforge.config.errors import Conflict, Forbidden
from trainforge.config.settings import ExecutorSettings
from trainforge.executor.identity import ExecutorIdentity, forget, load_key
from trainforge.executor.link import SenderLink
from trainforge.executor.orders import OrderBook
from trainforge.executor.program import only_one
from trainforge.executor.supervise import Supervised

log = logging.getLogger(__name__)


def leave(settings: ExecutorSettings) -> ExecutorIdentity:
    """Part with the sender, which counts the jobs that are still here as lost; returns whom it was with.

    Raises:
        SettingsError: not joined, or an executor runs here. Conflict: a training goes on.
        Unreachable: the sender was not told.
    """
    with only_one(settings.data_dir):
        identity = ExecutorIdentity.load(settings.data_dir)
        for key in (book := OrderBook(settings.data_dir)).known():
            if Supervised(book.folder(key) / "run").alive():
                raise Conflict(
                    f"job {key.job[:8]} still trains here", hint=f"`trainforge stop {key.job[:8]}`"
                )
        if identity.sender_url:
            _tell(SenderLink(identity, load_key(settings.data_dir)))
        forget(settings.data_dir)
    return identity


def _tell(link: SenderLink) -> None:
    try:
        link.leave()
    except Forbidden as error:
        log.info("the sender has forgotten this executor already: %s", error)
    finally:
        link.close()
