"""Executors that announce themselves on a branch: their endpoint files, and how each stands to this run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from trainforge.config.errors import MessageInvalid, NotTrusted, TrainForgeError
from trainforge.config.messages import Endpoint
from trainforge.config.trust import executor_id, public_jwk
from trainforge.hooks.outward import check_url


@dataclass
class Standing:
    """Whether an executor works for this run, or why not."""

    endpoint: Endpoint
    here: bool = False
    busy: bool = False  # with another run
    tried: bool = False
    why: str = ""


def read_endpoint(data: bytes, *, allow_private: bool) -> Endpoint:
    """An executor's own word on where it is, checked as far as that is possible without asking it.

    Raises:
        MessageInvalid: not an endpoint file. NotTrusted: its name and its key do not belong together.
        AddressRefused: not an address to go to.
    """
    try:
        endpoint = Endpoint.model_validate_json(data)
    except ValidationError as error:
        raise MessageInvalid(f"not an endpoint file: {error.errors()[0]['msg']}") from error
    if executor_id(public_jwk(endpoint.public_key)) != endpoint.executor:
        raise NotTrusted("the executor's id is not that of its key")
    check_url(endpoint.public_url, allow_private=allow_private)
    return endpoint


def each(standings: Iterable[Standing], unused: Mapping[str, TrainForgeError]) -> Iterator[str]:
    """Who works for this run, and why the others do not, a line each; `unused` are files."""
    for one in sorted(standings, key=lambda one: one.endpoint.name):
        state = "here" if one.here else one.why or "does not answer"
        yield f"{one.endpoint.name} at {one.endpoint.public_url} ({one.endpoint.timestamp}): {state}"
    for path, why in sorted(unused.items()):
        yield f"{path}: {why}"
