"""Commit statuses and check runs, as GitHub's API has them."""

from __future__ import annotations

from support.github.calls import Call, Refusal, invalid, route
from support.github.description import example, overlaid
from support.github.repository_routes import Answer, sha_of
from support.github.state import REPO, Json, app_json, node_id, stamp, user

MAX_DESCRIPTION = 140


@route("POST", REPO + "/statuses/{sha}", ("statuses", "write"))
def add_status(call: Call) -> Answer:
    found, body = call.repository, call.body
    sha = sha_of(found, call.path["sha"])
    if len(body.get("description") or "") > MAX_DESCRIPTION:
        raise call.github.wrong(invalid("Status", "description", "is too long (maximum is 140 characters)"))
    if (body.get("target_url") or "http://").partition("://")[0] not in ("http", "https"):
        raise call.github.wrong(invalid("Status", "target_url", "must use http(s) scheme"))
    made = example("POST", REPO + "/statuses/{sha}", found.base, "201")
    status = overlaid(
        made,
        id=next(call.github.numbers), node_id=node_id(), state=body["state"],
        context=body.get("context", "default"), description=body.get("description"),
        target_url=body.get("target_url"), url=f"{found.api}/statuses/{sha}",
        created_at=stamp(), updated_at=stamp(), creator=_who(call),
    )  # fmt: skip
    found.statuses.insert(0, status | {"sha": sha})
    return 201, status


def _who(call: Call) -> Json:
    assert call.token is not None
    kind = "Bot" if call.token.app is not None else "User"
    return user(call.token.user, call.github.api, call.github.site, kind)


@route("GET", REPO + "/commits/{ref}/statuses", ("statuses", "read"))
def statuses(call: Call) -> Answer:
    found = call.repository
    sha = sha_of(found, call.path["ref"])
    return 200, call.page([_without_sha(one) for one in found.statuses if one["sha"] == sha])


@route("GET", REPO + "/commits/{ref}/status", ("statuses", "read"))
def combined_status(call: Call) -> Answer:
    found = call.repository
    sha = sha_of(found, call.path["ref"])
    newest: dict[str, Json] = {}
    for one in found.statuses:
        if one["sha"] == sha:
            newest.setdefault(one["context"], _without_sha(one))
    states = {one["state"] for one in newest.values()}
    worst = next(
        (s for s in ("failure", "error", "pending") if s in states), "success" if states else "pending"
    )
    made = example("GET", REPO + "/commits/{ref}/status", found.base)
    shown = [
        {k: v for k, v in one.items() if k != "creator"} | {"required": False} for one in newest.values()
    ]
    return 200, overlaid(
        made, state="failure" if worst == "error" else worst, sha=sha, statuses=shown, total_count=len(shown),
        repository={k: v for k, v in found.as_json().items() if k in made["repository"]},
        commit_url=f"{found.api}/commits/{sha}", url=f"{found.api}/commits/{sha}/status",
    )  # fmt: skip


def _without_sha(one: Json) -> Json:
    return {key: value for key, value in one.items() if key != "sha"}


@route("POST", REPO + "/check-runs", ("checks", "write"))
def add_check_run(call: Call) -> Answer:
    found, body = call.repository, call.body
    number = next(call.github.numbers)
    assert call.token is not None and call.token.app is not None
    made = example("POST", REPO + "/check-runs", found.base, "201")
    run = overlaid(
        made,
        id=number, node_id=node_id(), head_sha=sha_of(found, body["head_sha"]), name=body["name"],
        url=f"{found.api}/check-runs/{number}", html_url=f"{found.site}/{found.full_name}/runs/{number}",
        details_url=body.get("details_url"), external_id=body.get("external_id", ""), status="queued",
        conclusion=None, started_at=body.get("started_at") or stamp(), completed_at=None, pull_requests=[],
        app=app_json(call.github.apps[call.token.app], found.base, found.site),
        check_suite={"id": number + 1},
        output={"title": None, "summary": None, "text": None, "annotations_count": 0,
                "annotations_url": f"{found.api}/check-runs/{number}/annotations"},
        _annotations=[], _actions=[],
    )  # fmt: skip
    found.check_runs[number] = run
    return 201, _change_run(run, body)


@route("PATCH", REPO + "/check-runs/{check_run_id}", ("checks", "write"))
def change_check_run(call: Call) -> Answer:
    return 200, _change_run(_check_run(call), call.body)


def _change_run(run: Json, body: Json) -> Json:
    if body.get("status") == "completed" and not body.get("conclusion") and not run["conclusion"]:
        raise invalid("CheckRun", "conclusion", "is required when the status is completed")
    for key in ("name", "details_url", "external_id", "started_at", "completed_at", "status"):
        run[key] = body.get(key, run[key])
    if body.get("conclusion"):
        run |= {"conclusion": body["conclusion"], "status": "completed"}
        run["completed_at"] = run["completed_at"] or stamp()
    if output := body.get("output"):
        run["_annotations"] += output.get("annotations", [])
        texts = {key: output.get(key, run["output"][key]) for key in ("title", "summary", "text")}
        run["output"] = run["output"] | texts | {"annotations_count": len(run["_annotations"])}
    run["_actions"] = body.get("actions", run["_actions"])
    return run_json(run)


def run_json(run: Json) -> Json:
    return {key: value for key, value in run.items() if not key.startswith("_")}


@route("GET", REPO + "/check-runs/{check_run_id}", ("checks", "read"))
def one_check_run(call: Call) -> Answer:
    return 200, run_json(_check_run(call))


def _check_run(call: Call) -> Json:
    found = call.repository.check_runs.get(int(call.path["check_run_id"]))
    if found is None:
        raise Refusal(404, "Not Found")
    return found


@route("GET", REPO + "/commits/{ref}/check-runs", ("checks", "read"))
def check_runs(call: Call) -> Answer:
    found = call.repository
    sha = sha_of(found, call.path["ref"])
    wanted = call.query.get("check_name")
    runs = [
        run_json(run)
        for run in reversed(found.check_runs.values())
        if run["head_sha"] == sha and wanted in (None, run["name"])
    ]
    return 200, {"total_count": len(runs), "check_runs": call.page(runs)}
