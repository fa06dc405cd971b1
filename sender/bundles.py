"""Uploaded ZIP files: from a form and an archive to a commit in the built-in git server, and to its job.

A project without a manifest gets one that says what the form says; where the ZIP has one, the form's values
lie over it as any job's overrides do. All but `train` and `plan` runs in a worker thread.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from trainforge.config.errors import MessageInvalid, Place
from trainforge.config.manifest import Manifest, apply_overrides, parse_manifest
from trainforge.config.strict_json import read_json
from trainforge.config.views import JobDetail
from trainforge.hooks.bundle import CHUNK, Bundle, Member
from trainforge.hooks.bundle_commit import REF, arrange, commit_files
from trainforge.hooks.bundle_names import BundleRefused, folded, show
from trainforge.hooks.triggers import MANIFEST
from trainforge.sender import events, planned, watching
from trainforge.sender.actions import in_thread
from trainforge.sender.context import Sender
from trainforge.sender.drafts import MAX_READ
from trainforge.sender.notify import REPOSITORIES
from trainforge.sender.people import Person
from trainforge.sender.registry import choose_executors
from trainforge.sender.uploads import Upload

FOLDER = "bundles"  # of the repositories on the built-in server that uploads go to
ENTRY = "main.py"
SOURCE = "upload"
USUAL_REQUIREMENTS = "requirements.txt"
_PLAIN = re.compile(r"(?!(?:true|false|null|yes|no|on|off|y|n)\Z)[A-Za-z][A-Za-z0-9._/-]*", re.IGNORECASE)
_UNFIT = re.compile(r"[^a-z0-9._-]+")


def _json(value: Any) -> Any:
    return read_json(value.encode() or b"{}") if isinstance(value, str) else value


def _names(value: Any) -> Any:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


_JSON_TEXT = WithJsonSchema({"type": "string", "description": "a JSON object"})
Mapped = Annotated[dict[str, Any], BeforeValidator(_json), _JSON_TEXT]


class BundleAsk(BaseModel):
    """What the form says beside the file. A `rerun` trains once more what was uploaded before."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(default="", max_length=200, description="the project's name")
    main_entry: str = Field(default="", max_length=1024, description="the script; main.py unless said")
    requirements_file: str = Field(default="", max_length=1024, description="what to install")
    nodes: str = Field(default="", max_length=11, description="machines that train together: 2, or 1:4")
    params: Mapped = Field(default={}, description="the training's parameters, a JSON object")
    overrides: Mapped = Field(default={}, description="keys of the manifest, a JSON object")
    executors: Annotated[list[str], BeforeValidator(_names), WithJsonSchema({"type": "string"})] = Field(
        default=[], max_length=1000, description="machines by name, with commas between"
    )
    rerun: bool = False


def read_ask(fields: Mapping[str, str]) -> BundleAsk:
    """The form as it is said. Raises MessageInvalid."""
    try:
        return BundleAsk.model_validate_strings({name: text for name, text in fields.items() if text})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:200]
        raise MessageInvalid(
            f"{where}: {first['msg']}", hint="`/api/openapi.json` describes the form"
        ) from error


async def train(sender: Sender, ask: BundleAsk, upload: Upload, person: Person) -> JobDetail:
    """A job for what was uploaded. The same files and the same form make the same job, unless `rerun`."""
    async with sender.unpacking:
        return await in_thread(_train, sender, ask, upload, person)


def _train(sender: Sender, ask: BundleAsk, upload: Upload, person: Person) -> JobDetail:
    made = store(sender, ask, upload, person)
    rerun = secrets.token_hex(8) if ask.rerun else ""
    job = events.request_job(sender, **made.asked, rerun=rerun)
    detail = sender.queries.job(job)
    return detail.model_copy(update={"notices": [*made.notes, *detail.notices]})


async def plan(sender: Sender, ask: BundleAsk, upload: Upload, person: Person) -> str:
    """Plan it, for `planned.confirm`; gives the id that the job will have."""
    async with sender.unpacking:
        return await in_thread(_plan, sender, ask, upload, person)


def _plan(sender: Sender, ask: BundleAsk, upload: Upload, person: Person) -> str:
    made = store(sender, ask, upload, person)
    asked = made.asked | {"rerun": f"planned:{secrets.token_hex(8)}"}
    form = {name: str(asked[name]) for name in ("ref", "commit", "manifest_path")}
    form |= {"form": "1", "repository": made.repository, "selection": "auto"}
    form["more"] = "\n".join(f"{key}={json.dumps(value)}" for key, value in asked["overrides"].items())
    form |= {"distributed": "true"} if made.manifest.resources.nodes.max > 1 else {}
    preferred = planned.preferences(sender, person.name).preferred_machines
    return str(planned.draft(sender, asked, preferred, form=form, notes=made.notes)["job_id"])


@dataclass(frozen=True)
class Stored:
    """What `events.draft_jobs` is to be asked for, and what people are told of it."""

    asked: dict[str, Any]
    repository: str
    manifest: Manifest
    notes: list[str]


def store(sender: Sender, ask: BundleAsk, upload: Upload, person: Person) -> Stored:
    """Make it a commit, if it can be a job.

    Raises:
        BundleRefused: the ZIP is not taken. ManifestError, NotFound: what it asks for cannot be. StorageFull.
    """
    choose_executors(sender, ask.executors)
    bundle = Bundle(upload.file)
    sender.disk.refuse_without(sum(member.packed for member in bundle.files))
    arranged = arrange(bundle.files, (ask.main_entry, ask.requirements_file))
    files: dict[str, Member | bytes] = dict(arranged.files)
    notes = list(arranged.notes)
    if clash := [path for path in files if folded(path.split("/")[0]) == MANIFEST and path != MANIFEST]:
        raise BundleRefused(
            "bundle_duplicate", f"{show(clash[0])} is in the manifest's place", f"call it {MANIFEST}"
        )
    if MANIFEST in files:
        text = _committed(bundle, arranged.files[MANIFEST])
        overrides = _overrides(ask, parse_manifest(text, MANIFEST))
    else:
        if not ask.requirements_file and USUAL_REQUIREMENTS in files:
            ask = ask.model_copy(update={"requirements_file": USUAL_REQUIREMENTS})
            notes.append(f"{USUAL_REQUIREMENTS} is installed before the training.")
        text = generated(ask, ask.name or PurePosixPath(upload.filename).stem or "project")
        files[MANIFEST], overrides = text, dict(ask.overrides)
    manifest = apply_overrides(parse_manifest(text, MANIFEST), overrides)
    _check_entry(manifest, files, ask)
    name = f"{FOLDER}/{repository_of(manifest.project.name)}"
    message = _message(upload, manifest, notes)
    made = commit_files(
        sender.git_root / f"{name}.git", bundle, files,
        message=message, author=person.name, meanwhile=sender.disk.refuse_when_low,
    )  # fmt: skip
    repo = watching.builtin(sender, name)
    if made.new:
        sender.store.move_head(repo.id, REF, (made.before, made.commit), sender.now())
        about = {"commit": made.commit, "sha256": _digest(upload), "files": len(files)}
        sender.store.audit(person.actor, "bundle.uploaded", repo.name, about, now=sender.now())
        sender.bell.ring(REPOSITORIES)
    asked = {
        "repository": repo.id, "commit": made.commit, "ref": REF, "manifest_path": MANIFEST,
        "overrides": overrides, "executors": ask.executors, "source": SOURCE,
    }  # fmt: skip
    return Stored(asked, name, manifest, notes)


def _committed(bundle: Bundle, member: Member) -> bytes:
    """The ZIP's own manifest."""
    if member.size > MAX_READ:
        raise BundleRefused("bundle_too_large", f"{MANIFEST} has {member.size} bytes", "it is no manifest")
    return b"".join(bundle.contents(member))


def _digest(upload: Upload) -> str:
    upload.file.seek(0)
    digest = hashlib.sha256()
    while data := upload.file.read(CHUNK):
        digest.update(data)
    return digest.hexdigest()


# --- the manifest -------------------------------------------------------------------------------------


def slug(name: str) -> str:
    """A name for the manifest of what somebody called their project: `My Training Job`, my-training-job."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    made = _UNFIT.sub("-", plain).strip("-._")[:63].rstrip("-._")
    return made or f"project-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def repository_of(project: str) -> str:
    """The part of a repository's name that a project has; names that differ in case alone share one."""
    made = slug(project)
    return f"{made}-" if made.endswith((".git", ".lock")) else made


def generated(ask: BundleAsk, named: str) -> bytes:
    """The manifest of a project that has none. The same form makes the same text."""
    name = slug(named)
    nodes: Any = int(ask.nodes) if ask.nodes.isdecimal() else ask.nodes
    said: dict[str, dict[str, Any]] = {
        "project": {"name": name, "description": named if named != name else ""},
        "training": {
            "script": ask.main_entry or ENTRY,
            "launcher": "python",
            "requirements": ask.requirements_file,
            "params": ask.params,
        },
        "resources": {"nodes": nodes},
    }
    lines = ["# Written by TrainForge of what the upload's form said."]
    for section, values in said.items():
        kept = [f"  {key}: {_written(value)}" for key, value in values.items() if value not in ("", {})]
        lines += [f"{section}:", *kept] if kept else []
    return "\n".join([*lines, ""]).encode()


def _written(value: Any) -> str:
    """JSON, which YAML reads alike; plain where that is plainly text."""
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=False)


def _overrides(ask: BundleAsk, manifest: Manifest) -> dict[str, Any]:
    """What the form says otherwise than the ZIP's manifest, which stays as it is in the commit."""
    training, said = manifest.training, dict[str, Any]()
    if ask.name and manifest.project.name not in {ask.name, slug(ask.name)}:
        said["project.name"] = slug(ask.name)
    if ask.main_entry and ask.main_entry != training.script:
        said["training.script"] = ask.main_entry
        said |= {f"training.{key}": None for key in ("command", "module") if getattr(training, key)}
        if training.launcher == "none":
            said["training.launcher"] = "python"
    if ask.requirements_file and ask.requirements_file != training.requirements:
        said["training.requirements"] = ask.requirements_file
    if ask.nodes and ask.nodes != str(manifest.resources.nodes):
        said["resources.nodes"] = ask.nodes
    said |= {f"training.params.{key}": value for key, value in ask.params.items()}
    return said | ask.overrides


def _check_entry(manifest: Manifest, files: Mapping[str, Any], ask: BundleAsk) -> None:
    """What the form names is in the ZIP; as is the script that nobody named, where a default was taken."""
    training = manifest.training
    wanted = {"requirements_file": ask.requirements_file and training.requirements}
    if ask.main_entry or isinstance(files[MANIFEST], bytes):
        wanted["main_entry"] = training.script
    for key, path in wanted.items():
        if path and str(PurePosixPath(training.working_dir, path)) not in files:
            suffix = PurePosixPath(path).suffix
            there = sorted(name for name in files if suffix and name.endswith(suffix))[:5]
            has = ", ".join(show(name) for name in there)
            hint = f"it has {has}: name the one that is meant" if has else "name a file that it has"
            raise MessageInvalid(f"there is no {show(path)} in the ZIP", hint=hint, place=Place(key))


def _message(upload: Upload, manifest: Manifest, notes: Sequence[str]) -> str:
    """The commit's: the archive's name as far as it is text."""
    name = "".join(char for char in upload.filename if char.isprintable())[:100] or "a ZIP"
    return "\n".join(
        [f"Upload {name} for {manifest.project.name}", "", *(f"- {note}" for note in notes)]
    ).strip()
