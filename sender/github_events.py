"""What GitHub's deliveries lead to, beside pushes: written down before they are answered, acted on later.

`webhooks.py` hands over what it has authenticated and read. A delivery may come again after a crash, so
noting the same one twice must change nothing.
"""

from __future__ import annotations

from trainforge.hooks.github_deliveries import Delivery
from trainforge.sender.context import Sender
from trainforge.sender.store_events import Repo

IGNORED = "nothing follows from this event"


def note(sender: Sender, repo: Repo, delivery: Delivery) -> str:
    """Write down what a delivery asks for, in a worker thread, before GitHub is answered.

    Quick, without network; whatever it takes long is done by the loops that look at what is written here.
    Gives words on what follows (`IGNORED` for nothing).
    """
    del sender, repo, delivery
    return IGNORED
