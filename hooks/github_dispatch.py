"""What a `repository_dispatch` of the event type `trainforge` asks for, read strictly. Pure.

Its `client_payload` is free JSON at GitHub: at most ten keys and 64 KiB (REST API, "Create a repository
dispatch event").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from trainforge.config.errors import MessageInvalid
from trainforge.config.messages import CommitId
from trainforge.hooks import triggers
from trainforge.hooks.addresses import AddressRefused, validate_folder, validate_ref
from trainforge.hooks.github_text import flat

EVENT_TYPE = "trainforge"
MAX_BYTES = 64 * 1024
KEYS = "ref, commit, manifest, set, executors and rerun"
_Key = Annotated[str, StringConstraints(min_length=1, max_length=255)]


class TrainRequest(BaseModel):
    """A job for a commit. `ref` is a full name, or empty; without `commit` its head is meant.

    `set` has dotted keys of the manifest; `rerun` asks for a job of its own where there is the same one.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    ref: str = Field(default="", max_length=1024)
    commit: CommitId | None = None
    manifest: str = Field(default=triggers.MANIFEST, min_length=1, max_length=1024)
    set: dict[_Key, Any] = Field(default={}, max_length=200)
    executors: list[_Key] = Field(default=[], max_length=1000)
    rerun: bool = False


def read_request(payload: Mapping[str, Any], default_branch: str) -> TrainRequest:
    """What a `client_payload` asks for; the default branch's head where it names neither ref nor commit.

    Raises:
        MessageInvalid: an unknown key, or a value that cannot be meant.
    """
    if len(json.dumps(payload)) > MAX_BYTES:
        raise MessageInvalid(f"client_payload has more than {MAX_BYTES} bytes")
    try:
        asked = TrainRequest.model_validate(payload)
    except ValidationError as error:
        raise MessageInvalid(_words(error), hint=f"it takes {KEYS}") from error
    try:
        ref = _full(asked.ref or ("" if asked.commit else default_branch))
        validate_folder(asked.manifest)
    except AddressRefused as error:
        raise MessageInvalid(f"client_payload: {flat(error.message, 300)}", hint=error.hint) from error
    return asked.model_copy(update={"ref": ref})


def _full(ref: str) -> str:
    """A branch by its name, or a branch or tag by its full one."""
    if not ref:
        return ""
    full = validate_ref(ref if ref.startswith("refs/") else f"{triggers.BRANCH}{ref}")
    if not full.startswith((triggers.BRANCH, triggers.TAG)):
        raise AddressRefused(f"{flat(full, 200)} is neither a branch nor a tag", hint="name a branch")
    return full


def _words(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = flat(".".join(map(str, first["loc"])), 100)
    if first["type"] == "extra_forbidden":
        return f"client_payload has an unknown key, {where}"
    if where == "commit":
        return "client_payload.commit is not the whole id of a commit"
    return f"client_payload.{where}: {flat(first['msg'], 200)}"
