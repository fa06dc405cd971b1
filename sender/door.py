"""Who of the executors is let in: their requests are checked together, in a thread that nothing else takes.

So a heartbeat waits neither for decisions nor for git, and those of a fleet share their transactions.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial

from trainforge.config.errors import NotTrusted, TrainForgeError
from trainforge.config.trust import proof_issuer
from trainforge.sender import registry
from trainforge.sender.batches import Batches
from trainforge.sender.context import Sender
from trainforge.sender.registry import Heard, Said
from trainforge.sender.store_members import Member
from trainforge.sender.store_visits import Visit

Door = Batches[Said, Heard]
Proved = Mapping[int, tuple[Member, Visit]]  # by the request's place among those that came with it


def make_door(sender: Sender) -> Door:
    return Batches("door", partial(let_in, sender))


def let_in(sender: Sender, requests: Sequence[Said]) -> list[Heard | Exception]:
    """For each request who makes it, or why it is refused: unknown, removed, not proved, or used before."""
    proved, outcomes = _prove(sender, requests)
    for turn in _turns(proved):
        outcomes |= _admit(sender, turn)
    return [outcomes[place] for place in range(len(requests))]


def _prove(sender: Sender, requests: Sequence[Said]) -> tuple[Proved, dict[int, Heard | Exception]]:
    """Those whose signature holds, and the refusals of the others."""
    issuers: dict[int, str] = {}
    refused: dict[int, Heard | Exception] = {}
    for place, said in enumerate(requests):
        try:
            issuers[place] = proof_issuer(said.authorization)
        except TrainForgeError as error:
            refused[place] = error
    members, now = sender.store.members(issuers.values()), sender.now()
    proved: dict[int, tuple[Member, Visit]] = {}
    for place, issuer in issuers.items():
        member = members.get(issuer)
        if member is None:
            refused[place] = NotTrusted(
                "no such executor has joined this sender",
                hint="join this sender first",
                code="executor_unknown",
            )
            continue
        try:
            proved[place] = member, registry.prove(sender, member, requests[place], now)
        except TrainForgeError as error:
            refused[place] = error
    return proved, refused


def _turns(proved: Proved) -> list[Proved]:
    """All at once, but for heartbeats of an executor whose last one is among them: those one by one."""
    beats: Counter[str] = Counter()
    turns: dict[int, dict[int, tuple[Member, Visit]]] = defaultdict(dict)
    for place, (member, visit) in proved.items():
        turns[beats[member.id] if visit.beat else 0][place] = member, visit
        beats[member.id] += visit.beat is not None
    return [turns[number] for number in sorted(turns)]


def _admit(sender: Sender, proved: Proved) -> dict[int, Heard | Exception]:
    visits = [visit for _, visit in proved.values()]
    led_to = sender.store.admit(visits, sender.now(), sender.settings.lease_ttl)
    return {
        place: NotTrusted("this proof was used before")
        if said is None
        else registry.heard(sender, member, visit.beat, said)
        for (place, (member, visit)), said in zip(proved.items(), led_to, strict=True)
    }
