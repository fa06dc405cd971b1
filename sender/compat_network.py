"""The first API's `/api/network` and `/api/tasks`, translated to executors, plans and jobs."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from trainforge.config.errors import Conflict, MessageInvalid, NotFound
from trainforge.config.messages import PREPARE, Name
from trainforge.sender import actions, compat_jobs, machines, planned
from trainforge.sender.actions import in_thread
from trainforge.sender.compat_jobs import distributed_status, job_of, sender_of
from trainforge.sender.planned import PREFERENCES, PlanAsk, Preferences
from trainforge.sender.problems import dump, read_model, read_query
from trainforge.sender.query_forms import SuggestQuery, WaitQuery

MAX_WAIT_S = 30.0
_ANY_JOB = "project: {name: suggestion}\ntraining: {script: train.py}\n"
Host = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.:_-]{1,253}$")]
JobName = Annotated[str, StringConstraints(max_length=64)]


class Ask(BaseModel):
    model_config = ConfigDict(extra="forbid")


class MachineAsk(Ask):
    name: Name
    host: Host
    port: int | None = Field(default=None, ge=1, le=65535)  # one that asks for work has none


class DispatchAsk(Ask):
    """Confirm a planned job; machines named here replace those that the plan would take."""

    job_id: JobName
    selected_machines: list[str] = Field(default=[], max_length=1000)


class RankAsk(BaseModel):
    """The first API's dispatch of one rank; the machines agree on the master's address themselves."""

    model_config = ConfigDict(extra="ignore")

    job_id: JobName
    target_machine: str = Field(max_length=253)
    rank: int = Field(ge=0, le=4095)
    world_size: int = Field(ge=1, le=1024)
    master_port: int | None = Field(default=None, ge=1024, le=65535)


class WholeAsk(PlanAsk):
    """A job for one machine: one that is planned (`job_id`), or one to be planned now."""

    plugin_name: str = Field(default="", max_length=2048)
    job_id: JobName = ""


class PrepareAsk(PlanAsk):
    machine_id: str = Field(default="", max_length=253)
    machines: list[str] = Field(default=[], max_length=1000)


# --- machines -------------------------------------------------------------------------------------------


async def list_machines(request: Request) -> Response:
    return dump({"machines": await in_thread(machines.everything, sender_of(request))})


async def add_machine(request: Request) -> Response:
    ask = await read_model(request, MachineAsk)
    return dump(await in_thread(machines.add, sender_of(request), ask.name, ask.host, ask.port or 0))


async def show_machine(request: Request) -> Response:
    """`?wait=` is for how many seconds to wait until it has joined and reports."""
    named = request.path_params["machine"]
    return dump(await machines.arrival(sender_of(request), named, _seconds(request)))


async def remove_machine(request: Request) -> Response:
    return dump(await in_thread(machines.remove, sender_of(request), request.path_params["machine"]))


async def ping_machine(request: Request) -> Response:
    """`?wait=` is for how many seconds to wait for the machine."""
    sender = sender_of(request)
    view = await in_thread(machines.joined, sender, request.path_params["machine"])
    return dump(await machines.ping(sender, view, _seconds(request) or None))


def _seconds(request: Request) -> float:
    return min(read_query(request, WaitQuery).wait, MAX_WAIT_S)


async def health_check(request: Request) -> Response:
    return dump(await machines.health_check(sender_of(request)))


async def network_status(request: Request) -> Response:
    return dump(await in_thread(machines.status, sender_of(request)))


async def capabilities(request: Request) -> Response:
    return dump(await in_thread(machines.host_capabilities, sender_of(request)))


async def show_preferences(request: Request) -> Response:
    sender, person = sender_of(request), request.state.person.name
    return dump(await in_thread(planned.preferences, sender, person))


async def save_preferences(request: Request) -> Response:
    sender, person = sender_of(request), request.state.person.name
    wishes = await read_model(request, Preferences)
    await in_thread(
        sender.store.put_document, PREFERENCES, person, wishes.model_dump(exclude_unset=True), sender.now()
    )
    return dump(wishes)


# --- plan, confirm, dispatch ----------------------------------------------------------------------------


async def plan_job(request: Request) -> Response:
    ask = await read_model(request, PlanAsk)
    if ask.selected_machines:
        ask = await _with_ids(request, ask)
    return dump(await in_thread(planned.propose, sender_of(request), ask, request.state.person.name))


async def _with_ids(request: Request, ask: PlanAsk) -> PlanAsk:
    ids = await in_thread(_ids, sender_of(request), ask.selected_machines)
    return ask.model_copy(update={"selected_machines": ids})


def _ids(sender: Any, names: list[str]) -> list[str]:
    return [machines.joined(sender, name).id for name in names]


async def dispatch_plan(request: Request) -> Response:
    ask = await read_model(request, DispatchAsk)
    return await _queue(request, ask.job_id, ask.selected_machines)


async def _queue(request: Request, job: str, names: list[str], *, whole: bool = False) -> Response:
    """Confirm a planned job, on the machines named, and answer how it stands."""
    sender = sender_of(request)
    ids = await in_thread(_ids, sender, names)
    overrides: dict[str, Any] = {}
    if ids:
        overrides["resources.nodes"] = 1 if whole else len(ids)
    detail = await in_thread(lambda: planned.confirm(sender, job, machines=ids, overrides=overrides))
    return dump(await in_thread(distributed_status, sender, detail.id))


async def dispatch_rank(request: Request) -> Response:
    """Rank by rank, as the first API's coordinator did it; the job is queued once each has a machine."""
    ask = await read_model(request, RankAsk)
    sender = sender_of(request)

    def note() -> list[int]:
        view = machines.joined(sender, ask.target_machine)
        return planned.assign(
            sender, ask.job_id, view.id, rank=ask.rank, world_size=ask.world_size, port=ask.master_port
        )

    missing = await in_thread(note)
    if not missing:
        return await _queue(request, ask.job_id, [])
    return dump({"job_id": ask.job_id, "status": "planning", "rank": ask.rank, "missing_ranks": missing})


async def job_status(request: Request) -> Response:
    return dump(await in_thread(distributed_status, sender_of(request), await job_of(request)))


async def stop_job(request: Request) -> Response:
    """A planned job is dropped, a queued one stopped on all of its machines."""
    sender, job = sender_of(request), await job_of(request)
    if await in_thread(sender.store.drop_document, planned.KIND, job):
        return dump({"job_id": job, "status": "failed", "state": "cancelled", "nodes": []})
    person = request.state.person
    await actions.stop(sender, job, f"stopped by {person.name}", person.actor)
    return dump(await in_thread(distributed_status, sender, job))


# --- one machine, whole jobs ----------------------------------------------------------------------------


async def dispatch_whole(request: Request) -> Response:
    return await _whole(request, request.path_params["machine"])


async def execute_here(request: Request) -> Response:
    """The same on the executor of this sender's own host."""
    sender = sender_of(request)
    local = [view for view in await in_thread(machines.here, sender) if view.status != "offline"]
    if not local:
        raise Conflict(
            "no executor runs on this sender's host",
            hint="join one there (`trainforge sender token`), or dispatch to another machine",
        )
    return await _whole(request, local[0].id)


async def _whole(request: Request, machine: str) -> Response:
    ask = await read_model(request, WholeAsk)
    sender = sender_of(request)
    if not ask.job_id and not ask.plugin_name:
        raise MessageInvalid("name a planned job (job_id) or what to train (plugin_name)")
    await in_thread(machines.joined, sender, machine)
    job = ask.job_id
    if not job:
        drafted = PlanAsk.model_validate(ask.model_dump(exclude={"job_id"}, exclude_unset=True))
        made = await in_thread(planned.propose, sender, drafted, request.state.person.name, "dispatch")
        job = made["job_id"]
    return await _queue(request, job, [machine], whole=True)


async def _on_machine(request: Request) -> str:
    """The job named in the path, which must have a node on the machine named there. Raises NotFound."""
    sender, job = sender_of(request), await job_of(request)
    view = await in_thread(machines.joined, sender, request.path_params["machine"])
    status = await in_thread(distributed_status, sender, job)
    chosen = await in_thread(compat_jobs.chosen_machines, sender, job)
    if view.id not in {node["machine_id"] for node in status["nodes"]} | chosen:
        raise NotFound(f"job {job} is not on {view.name}", hint="`trainforge status JOB` shows where it is")
    return job


async def machine_job_status(request: Request) -> Response:
    return dump(await in_thread(distributed_status, sender_of(request), await _on_machine(request)))


async def stop_machine_job(request: Request) -> Response:
    await _on_machine(request)
    return await stop_job(request)


async def prepare(request: Request) -> Response:
    """Build a job's environment and fetch its data on machines, ahead of the job."""
    ask = await read_model(request, PrepareAsk)
    sender, person = sender_of(request), request.state.person.name
    names = ask.machines or [ask.machine_id] * bool(ask.machine_id) or ask.selected_machines
    if not names:
        raise MessageInvalid("no machine is named", hint="machine_id, or machines for several")
    left_out = {"machine_id", "machines", "selected_machines", "machine_selection"}
    drafted = PlanAsk.model_validate(ask.model_dump(exclude=left_out, exclude_unset=True))

    def one(machine: str) -> dict[str, Any]:
        made = planned.propose(sender, drafted, person, PREPARE)
        planned.confirm(sender, made["job_id"], machines=[machine])
        return distributed_status(sender, made["job_id"])

    ids = await in_thread(_ids, sender, names)
    jobs = [await in_thread(one, machine) for machine in ids]
    return dump({**jobs[0], "jobs": jobs})


# --- tasks ----------------------------------------------------------------------------------------------


# The next two queue jobs on GET, as documented; `access.py` guards them as the changes that they are.


async def queue_distributed(request: Request) -> Response:
    return await _queue(request, request.path_params["task"], [])


async def queue_on_machine(request: Request) -> Response:
    return await _queue(request, request.path_params["task"], [request.path_params["machine"]], whole=True)


async def suggest_machines(request: Request) -> Response:
    """Which machines to take for `num_machines`, `gpus_per_machine`, `min_gpu_memory`; else as preferred."""
    sender, person = sender_of(request), request.state.person.name
    asked = read_query(request, SuggestQuery)

    def find() -> dict[str, Any]:
        wishes = planned.preferences(sender, person)
        needs = asked.requirements(wishes.default_num_machines, wishes.default_gpus_per_machine)
        plan = None
        if preferred := planned.known(sender, wishes.preferred_machines):
            plan = actions.make_plan(sender, _ANY_JOB, needs.overrides(), preferred)["plan"]
        made = actions.make_plan(sender, _ANY_JOB, needs.overrides())
        plan = plan or made["plan"]
        chosen = [node["executor"] for node in plan["nodes"]] if plan else []
        shown = [
            {**one, "suggested": one["id"] in chosen, "reason": made["waiting"].get(one["name"], "")}
            for one in machines.everything(sender)
        ]
        return {
            "suggested_machines": chosen,
            "machines": sorted(shown, key=lambda one: (not one["suggested"], one["name"])),
            "enough": bool(plan),
            "waiting": {} if plan else made["waiting"],
            "resource_requirements": needs.model_dump(),
            "machine_selection": "auto" if wishes.auto_machine_selection else "manual",
        }

    return dump(await in_thread(find))


_MACHINE = "/network/machines/{machine}"
routes = [
    Route("/network/machines", list_machines),
    Route("/network/machines", add_machine, methods=["POST"]),
    Route("/network/machines/by-name/{machine}", remove_machine, methods=["DELETE"]),
    Route(_MACHINE, show_machine),
    Route(_MACHINE, remove_machine, methods=["DELETE"]),
    Route(f"{_MACHINE}/ping", ping_machine, methods=["POST"]),
    Route(f"{_MACHINE}/dispatch_job", dispatch_whole, methods=["POST"]),
    Route(_MACHINE + "/job_status/{job}", machine_job_status),
    Route(_MACHINE + "/stop_job/{job}", stop_machine_job, methods=["POST"]),
    Route("/network/status", network_status),
    Route("/network/health-check", health_check, methods=["POST"]),
    Route("/network/capabilities", capabilities),
    Route("/network/preferences", show_preferences),
    Route("/network/preferences", save_preferences, methods=["PUT"]),
    Route("/network/distributed/plan", plan_job, methods=["POST"]),
    Route("/network/distributed/dispatch", dispatch_plan, methods=["POST"]),
    Route("/network/distributed/status/{job}", job_status),
    Route("/network/distributed/stop/{job}", stop_job, methods=["POST"]),
    Route("/network/distributed_jobs/plan", plan_job, methods=["POST"]),
    Route("/network/distributed_jobs/dispatch", dispatch_rank, methods=["POST"]),
    Route("/network/distributed_jobs/{job}/status", job_status),
    Route("/network/prepare_dependencies", prepare, methods=["POST"]),
    Route("/network/execute_job", execute_here, methods=["POST"]),
    Route("/network/local_job_status/{job}", job_status),
    Route("/network/local_job_output/{job}", compat_jobs.job_output),
    Route("/network/local_job_file/{job}/{key:path}", compat_jobs.job_file),
    Route("/tasks/distributed/suggest_machines", suggest_machines),
    Route("/tasks/{task}/queue_distributed", queue_distributed),
    Route("/tasks/{task}/queue/{machine}", queue_on_machine),
]
