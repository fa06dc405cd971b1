"""The form for a new job: what to train, on what, the plan to confirm; nothing is queued before that."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from trainforge.config.document import read_document
from trainforge.config.errors import ManifestError, MessageInvalid, NotFound, TrainForgeError
from trainforge.config.views import ExecutorView
from trainforge.sender import events, machines, planned
from trainforge.sender.context import Sender
from trainforge.sender.job_page import read_changes
from trainforge.sender.pages import render, threaded
from trainforge.sender.people import Person
from trainforge.sender.planned import PREFERENCES, Preferences
from trainforge.sender.problems import problem

LAST = "new-job"  # the document that remembers what a person has planned last
SOURCE = ("repository", "ref", "commit", "manifest_path")
NEEDS = ("processes_per_node", "gpu", "cpu", "memory", "disk")
MOST_PARAMS = 100


def _of(request: Request) -> tuple[Sender, Person]:
    sender: Sender = request.app.state.sender
    person: Person = request.state.person
    return sender, person


# --- what to train ------------------------------------------------------------------------------------


def new_page(request: Request) -> Response:
    sender, person = _of(request)
    again = request.query_params.get("again", "")
    kept = planned.find(sender, again[:64]) if again else None
    if kept is not None:
        return show_form(request, dict(kept.get("form", {})))
    said = {name: request.query_params.get(name, "")[:2048] for name in SOURCE}
    if not said["repository"]:
        last = sender.store.document(LAST, person.name) or {}
        return show_form(request, said | {"repository": last.get("repository", "")}, chosen=False)
    return show_form(request, said | _wishes(planned.preferences(sender, person.name)))


def _wishes(wishes: Preferences) -> dict[str, str]:
    """The form's fields as a person likes them."""
    fields = {"selection": "auto" if wishes.auto_machine_selection else "manual"}
    if wishes.default_num_machines > 1:
        fields |= {"nodes": str(wishes.default_num_machines)}
    if wishes.default_gpus_per_machine:
        fields["gpu"] = str(wishes.default_gpus_per_machine)
    return fields | {f"machine:{name}": "true" for name in wishes.preferred_machines}


def show_form(
    request: Request, said: dict[str, str], wrong: TrainForgeError | None = None, *, chosen: bool = True
) -> Response:
    """First the repository, then its branch or commit, then everything else, as far as is said."""
    sender, person = _of(request)
    repositories = [view.name for view in sender.queries.repositories()]
    said = dict.fromkeys(SOURCE, "") | said
    heads: dict[str, str] = {}
    manifest: dict[str, Any] = {}
    try:
        if chosen and said.get("repository"):
            heads = sender.store.heads(sender.store.repository(said["repository"]).id)
        if heads and (said.get("ref") or said.get("commit")):
            manifest = _manifest(sender, said, heads)
    except TrainForgeError as error:
        wrong = wrong or error
    resources = manifest.get("resources") or {}
    nodes = str(resources.get("nodes", 1))
    distributed = said.get("distributed") if "form" in said else said.get("nodes") or nodes != "1"
    members = machines.members(sender)
    return render(
        request, "new.html", person=person, here="/jobs", said=said,
        chosen=chosen and bool(said.get("repository")), repositories=repositories, heads=heads,
        manifest=manifest, resources=resources, nodes=nodes, distributed=bool(distributed),
        params=_params(manifest), executors=members, most=_most(members),
        max_bundle=sender.settings.max_bundle,
        status=wrong.status if wrong else 200, problem=problem(wrong) if wrong else None,
        retry="/new?" + urlencode({name: said.get(name, "") for name in SOURCE}),
    )  # fmt: skip


def _most(members: Sequence[ExecutorView]) -> dict[str, int]:
    """The ends of the sliders: what the largest machine has."""
    gpus = max((len(one.capabilities.gpus) for one in members), default=0)
    cpus = max((one.capabilities.cpu_count for one in members), default=0)
    return {"nodes": len(members), "processes_per_node": gpus or cpus, "gpu": gpus, "cpu": cpus}


def _source(said: Mapping[str, str], heads: Mapping[str, str]) -> dict[str, Any]:
    """Which commit, as `events.draft_jobs` takes it."""
    ref = said.get("ref", "")
    commit = said.get("commit", "").strip().lower() or heads.get(ref, "")
    if len(commit) not in {40, 64} or not set(commit) <= set("0123456789abcdef"):
        raise MessageInvalid(
            f"{commit[:64] or ref[:80]!r} is no commit here",
            hint="choose a branch, or give a commit's full id",
        )
    path = said.get("manifest_path", "").strip() or "trainforge.yaml"
    return {"repository": said["repository"], "commit": commit, "ref": ref, "manifest_path": path}


def _manifest(sender: Sender, said: Mapping[str, str], heads: Mapping[str, str]) -> dict[str, Any]:
    """The manifest as committed. Raises TrainForgeError, ManifestError."""
    _, jobs = events.draft_jobs(sender, **_source(said, heads))
    if jobs[0].problems:
        raise ManifestError([TrainForgeError(str(one["detail"])) for one in jobs[0].problems])
    return dict(read_document(jobs[0].manifest_text, jobs[0].manifest_path).value)


def _params(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that a field can hold."""
    training = manifest.get("training")
    params = training.get("params") if isinstance(training, dict) else None
    plain = {name: value for name, value in (params or {}).items() if not isinstance(value, list | dict)}
    return dict(list(plain.items())[:MOST_PARAMS])


# --- planning and confirming --------------------------------------------------------------------------


def plan(request: Request) -> Response:
    sender, person = _of(request)
    said = {name: text for name, text in getattr(request.state, "form", {}).items() if name != "csrf"}
    try:
        if not said.get("repository"):
            raise NotFound("no repository is chosen")
        heads = sender.store.heads(sender.store.repository(said["repository"]).id)
        chosen = [name.removeprefix("machine:") for name in said if name.startswith("machine:")]
        manual = said.get("selection") == "manual"
        if manual and not chosen:
            raise MessageInvalid("no machine is chosen", hint="choose some, or let the sender choose")
        asked = {
            **_source(said, heads),
            "overrides": overrides_of(said),
            "executors": chosen if manual else [],
            "rerun": f"planned:{secrets.token_hex(8)}",
            "source": "plan",
        }
        wishes = planned.preferences(sender, person.name)
        preferred = [] if manual else wishes.preferred_machines
        job = planned.draft(sender, asked, preferred, form=said)["job_id"]
    except TrainForgeError as error:
        return show_form(request, said, error)
    now = sender.now()
    sender.store.put_document(LAST, person.name, {"repository": said["repository"]}, now)
    if said.get("remember"):
        kept = _remembered(wishes, said, chosen if manual else None)
        sender.store.put_document(PREFERENCES, person.name, kept.model_dump(exclude_unset=True), now)
    return RedirectResponse(f"/new/{job}", 303)


def overrides_of(said: Mapping[str, str]) -> dict[str, Any]:
    """The manifest's keys that the form changes; a field left empty changes nothing.

    Raises:
        ManifestError: a value is none.
    """
    lines = []
    if not said.get("distributed"):
        lines += ["resources.nodes=1"] if said.get("committed_nodes", "1") != "1" else []
    elif said.get("nodes", "").strip():
        lines.append(f"resources.nodes={said['nodes'].strip()}")
    for name in NEEDS:
        if value := said.get(name, "").strip():
            lines.append(f"resources.{name}={value}")
    for name, value in said.items():
        if name.startswith("param:") and value.strip():
            lines.append(f"training.params.{name.removeprefix('param:')}={value.strip()}")
    return read_changes("\n".join(lines)) | read_changes(said.get("more", ""))


def _remembered(wishes: Preferences, said: Mapping[str, str], chosen: list[str] | None) -> Preferences:
    nodes, gpus = said.get("nodes", "").strip(), said.get("gpu", "").strip()
    changed: dict[str, Any] = {"auto_machine_selection": chosen is None}
    changed["default_num_machines"] = int(nodes) if said.get("distributed") and nodes.isdecimal() else 1
    changed["default_gpus_per_machine"] = int(gpus) if gpus.isdecimal() else 0
    if chosen is not None:
        changed["preferred_machines"] = chosen
    return Preferences.model_validate(wishes.model_dump(exclude_unset=True) | changed)


def plan_page(request: Request) -> Response:
    sender, person = _of(request)
    job = request.path_params["job"]
    kept = planned.find(sender, job)
    if kept is None:
        return RedirectResponse(f"/jobs/{sender.queries.resolve(job)}", 303)  # it was confirmed meanwhile
    return render(
        request, "plan.html", person=person, here="/jobs", job=job, kept=kept,
        shown=planned.show(sender, job, kept), names={view.id: view for view in machines.members(sender)},
    )  # fmt: skip


def confirm(request: Request) -> Response:
    """Queue it: as planned, or on the machines that would do instead."""
    sender, _ = _of(request)
    job = request.path_params["job"]
    kept = planned.find(sender, job)
    instead: list[str] = []
    if kept is not None and getattr(request.state, "form", {}).get("instead"):
        instead = [
            machines.joined(sender, name).id for name in planned.show(sender, job, kept)["alternatives"]
        ]
    detail = planned.confirm(sender, job, machines=instead)
    return RedirectResponse(f"/jobs/{detail.id}", 303)


routes = [
    Route("/new", threaded(new_page)),
    Route("/new", threaded(plan), methods=["POST"]),
    Route("/new/{job}", threaded(plan_page)),
    Route("/new/{job}", threaded(confirm), methods=["POST"]),
]
