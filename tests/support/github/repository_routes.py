"""Repositories, their hooks, contents, commits, statuses and check runs, as GitHub's API has them."""

from __future__ import annotations

import base64
from typing import Any

from support.github.calls import Call, Refusal, invalid, route
from support.github.deliveries import listed
from support.github.description import example, hook_events, overlaid
from support.github.state import REPO, Hook, Json, Repository, hook_json, user

Answer = tuple[int, Any]


@route("GET", "/rate_limit")
def rate_limit(call: Call) -> Answer:
    made = example("GET", "/rate_limit", call.github.api)
    core = call.github.rate.as_json()
    made["resources"]["core"] = made["rate"] = core
    return 200, made


@route("GET", "/user")
def me(call: Call) -> Answer:
    if call.token is None or call.token.app is not None:
        raise Refusal(403, "Resource not accessible by integration")
    made = example("GET", "/user", call.github.api)
    known = user(call.token.user, call.github.api, call.github.site)
    return 200, overlaid(made, **known | {"user_view_type": "private"})


@route("GET", REPO, ("metadata", "read"))
def repository(call: Call) -> Answer:
    found = call.repository
    role = found.roles.get(call.token.user, "read") if call.token else "read"
    return 200, found.as_json(role)


# --- hooks ----------------------------------------------------------------------------------------------


@route("GET", REPO + "/hooks", ("repository_hooks", "read"))
def hooks(call: Call) -> Answer:
    found = call.repository
    return 200, call.page([hook_json(hook, found) for hook in found.hooks.values()])


@route("POST", REPO + "/hooks", ("repository_hooks", "write"))
def add_hook(call: Call) -> Answer:
    found, config = call.repository, call.body.get("config", {})
    url = str(config.get("url", ""))
    _check_hook(call, url, call.body.get("events", ["push"]))
    if any(hook.url == url for hook in found.hooks.values()):
        raise invalid("Hook", "url", "Hook already exists on this repository")
    hook = Hook(
        next(call.github.numbers), url, str(config.get("secret", "")),
        list(call.body.get("events", ["push"])), bool(call.body.get("active", True)),
    )  # fmt: skip
    found.hooks[hook.id] = hook
    call.github.later(call.github.ping, found, hook)
    return 201, hook_json(hook, found)


def _check_hook(call: Call, url: str, events: list[str]) -> None:
    if not url.startswith(("http://", "https://")):
        raise invalid("Hook", "url", "url is missing a scheme")
    if call.github.public_hooks_only and ("127.0.0.1" in url or "localhost" in url):
        raise invalid(
            "Hook",
            "url",
            "url is not supported because it isn't reachable over the public Internet (127.0.0.1)",
        )
    if unknown := sorted(set(events) - hook_events("repository") - {"*"}):
        raise call.github.wrong(invalid("Hook", "events", f"unknown events: {', '.join(unknown)}"))


@route("GET", REPO + "/hooks/{hook_id}", ("repository_hooks", "read"))
def one_hook(call: Call) -> Answer:
    return 200, hook_json(_hook(call), call.repository)


@route("PATCH", REPO + "/hooks/{hook_id}", ("repository_hooks", "write"))
def change_hook(call: Call) -> Answer:
    """As GitHub does: a configuration without a secret takes the old one away."""
    hook, body = _hook(call), call.body
    if "config" in body:
        url = str(body["config"].get("url", hook.url))
        _check_hook(call, url, body.get("events", []))
        hook.url, hook.secret = url, str(body["config"].get("secret", ""))
    hook.events = list(body.get("events", hook.events))
    hook.events += [one for one in body.get("add_events", []) if one not in hook.events]
    hook.active = bool(body.get("active", hook.active))
    return 200, hook_json(hook, call.repository)


@route("DELETE", REPO + "/hooks/{hook_id}", ("repository_hooks", "write"))
def drop_hook(call: Call) -> Answer:
    del call.repository.hooks[_hook(call).id]
    return 204, None


@route("POST", REPO + "/hooks/{hook_id}/pings", ("repository_hooks", "read"))
def ping_hook(call: Call) -> Answer:
    call.github.later(call.github.ping, call.repository, _hook(call))
    return 204, None


@route("GET", REPO + "/hooks/{hook_id}/deliveries", ("repository_hooks", "read"))
def hook_deliveries(call: Call) -> Answer:
    return 200, call.cursor_page([listed(one) for one in _hook(call).deliveries])


@route("GET", REPO + "/hooks/{hook_id}/deliveries/{delivery_id}", ("repository_hooks", "read"))
def hook_delivery(call: Call) -> Answer:
    return 200, delivery_of(call, _hook(call))


@route("POST", REPO + "/hooks/{hook_id}/deliveries/{delivery_id}/attempts", ("repository_hooks", "write"))
def redeliver(call: Call) -> Answer:
    found, hook = call.repository, _hook(call)
    call.github.later(call.github.redeliver, found.id, hook, delivery_of(call, hook))
    return 202, {}


def _hook(call: Call) -> Hook:
    found = call.repository.hooks.get(int(call.path["hook_id"]))
    if found is None:
        raise Refusal(404, "Not Found")
    return found


def delivery_of(call: Call, hook: Hook) -> Json:
    wanted = int(call.path["delivery_id"])
    found = [one for one in hook.deliveries if one["id"] == wanted]
    if not found:
        raise Refusal(404, "Not Found")
    return found[0]


# --- contents and commits -------------------------------------------------------------------------------


@route("GET", REPO + "/contents/{path}", ("contents", "read"))
def contents(call: Call) -> Answer:
    found, path = call.repository, call.path["path"]
    ref = call.query.get("ref") or found.default_branch
    commit = found.commit_of(ref)
    if not commit:
        raise Refusal(404, f"No commit found for the ref {ref}")
    kind = found.run("cat-file", "-t", f"{commit}:{path}", check=False)
    if not kind:
        raise Refusal(404, "Not Found")
    if kind == "tree":
        lines = found.run("ls-tree", "-l", f"{commit}:{path}").splitlines()
        rows = [line.replace("\t", " ").split(None, 4) for line in lines]
        return 200, [
            _entry(
                found,
                f"{path}/{row[4]}".strip("/"),
                ref=ref,
                sha=row[2],
                kind=row[1],
                size=int(row[3].replace("-", "0")),
            )
            for row in rows
        ]
    blob = found.run("rev-parse", f"{commit}:{path}")
    data = found.run("cat-file", "blob", blob).encode()
    size = int(found.run("cat-file", "-s", blob))
    text = base64.encodebytes(data).decode()
    return 200, _entry(found, path, ref=ref, sha=blob, kind="blob", size=size) | {
        "encoding": "base64",
        "content": text,
    }


def _entry(found: Repository, path: str, *, ref: str, sha: str, kind: str, size: int) -> Json:
    url = f"{found.api}/contents/{path}?ref={ref}"
    page = f"{found.site}/{found.full_name}/blob/{ref}/{path}"
    git = f"{found.api}/git/{kind}s/{sha}"
    return {
        "type": "dir" if kind == "tree" else "file", "size": size,
        "name": path.rpartition("/")[2], "path": path,
        "sha": sha, "url": url, "git_url": git, "html_url": page, "download_url": page,
        "_links": {"git": git, "self": url, "html": page},
    }  # fmt: skip


def commit_json(found: Repository, sha: str) -> Json:
    form = "%H%x00%T%x00%P%x00%an%x00%ae%x00%aI%x00%B"
    full, tree, parents, name, email, when, message = found.run("show", "-s", f"--format={form}", sha).split(
        "\0"
    )
    made = example("GET", REPO + "/commits/{ref}", found.base)
    who = {"name": name, "email": email, "date": when}
    url = f"{found.api}/commits/{full}"
    commit = overlaid(
        made["commit"], message=message.strip(), author=who, committer=who,
        tree={"sha": tree, "url": f"{found.api}/git/trees/{tree}"}, url=f"{found.api}/git/commits/{full}",
    )  # fmt: skip
    above = [{"sha": one, "url": f"{found.api}/commits/{one}", "html_url": url} for one in parents.split()]
    changes = {"sha": full, "url": url, "commit": commit, "parents": above}
    changes |= {"author": user(found.owner, found.base, found.site), "committer": None}
    changes["committer"] = changes["author"]
    return overlaid(made, **changes, html_url=f"{found.site}/{found.full_name}/commit/{full}", files=[])


def sha_of(found: Repository, ref: str) -> str:
    sha = found.commit_of(ref)
    if not sha:
        raise Refusal(422, f"No commit found for SHA: {ref}")
    return sha


@route("GET", REPO + "/commits/{ref}", ("contents", "read"))
def one_commit(call: Call) -> Answer:
    return 200, commit_json(call.repository, sha_of(call.repository, call.path["ref"]))


@route("POST", REPO + "/git/refs", ("contents", "write"))
def add_ref(call: Call) -> Answer:
    if not call.repository.commit_of(call.body["sha"]):
        raise Refusal(422, "Object does not exist")
    raise call.github.wrong(Refusal(422, "refs are pushed here"))


@route("GET", REPO + "/compare/{basehead}", ("contents", "read"))
def compare(call: Call) -> Answer:
    found = call.repository
    base, _, head = call.path["basehead"].partition("...")
    old, new = sha_of(found, base), sha_of(found, head.rpartition(":")[2])
    fork = found.run("merge-base", old, new, check=False) or old
    behind, ahead = map(int, found.run("rev-list", "--left-right", "--count", f"{old}...{new}").split())
    word = {(False, False): "identical", (True, False): "ahead", (False, True): "behind"}.get(
        (ahead > 0, behind > 0), "diverged"
    )
    commits = found.run("rev-list", "--reverse", f"{old}..{new}").split()
    made = example("GET", REPO + "/compare/{basehead}", found.base)
    return 200, overlaid(
        made,
        base_commit=_plain(found, old), merge_base_commit=_plain(found, fork), status=word,
        ahead_by=ahead, behind_by=behind, total_commits=len(commits),
        commits=[_plain(found, one) for one in commits], files=changed_files(found, fork, new),
    )  # fmt: skip


def _plain(found: Repository, sha: str) -> Json:
    made = commit_json(found, sha)
    return {key: value for key, value in made.items() if key not in ("files", "stats")}


def changed_files(found: Repository, old: str, new: str) -> list[Json]:
    words = {"A": "added", "M": "modified", "D": "removed", "T": "changed"}
    names = found.run("diff", "--no-renames", "--name-status", old, new).splitlines()
    counts = {
        line.split("\t")[2]: line.split("\t")[:2]
        for line in found.run("diff", "--no-renames", "--numstat", old, new).splitlines()
    }
    files = []
    for line in names:
        letter, _, path = line.partition("\t")
        plus, minus = (int(n) if n != "-" else 0 for n in counts[path])
        blob = found.run("rev-parse", f"{new if letter != 'D' else old}:{path}")
        page = f"{found.site}/{found.full_name}/blob/{new}/{path}"
        files.append({
            "sha": blob, "filename": path, "status": words.get(letter, "modified"), "additions": plus,
            "deletions": minus, "changes": plus + minus, "blob_url": page, "raw_url": page,
            "contents_url": f"{found.api}/contents/{path}?ref={new}",
        })  # fmt: skip
    return files


@route("GET", REPO + "/branches/{branch}", ("contents", "read"))
def branch(call: Call) -> Answer:
    found, name = call.repository, call.path["branch"]
    sha = found.commit_of(f"refs/heads/{name}")
    if not sha:
        raise Refusal(404, "Branch not found")
    made = example("GET", REPO + "/branches/{branch}", found.base)
    return 200, overlaid(made, name=name, commit=commit_json(found, sha))


# --- people, dispatches ---------------------------------------------------------------------------------


@route("GET", REPO + "/collaborators/{username}/permission", ("metadata", "read"))
def permission(call: Call) -> Answer:
    found, name = call.repository, call.path["username"]
    role = found.roles.get(name, "none" if found.private else "read")
    rough = {"maintain": "write", "triage": "read"}.get(role, role)
    known = user(name, found.base, found.site) | {"role_name": role}
    return 200, {"permission": rough, "role_name": role, "user": known}


@route("POST", REPO + "/dispatches", ("contents", "write"))
def dispatch(call: Call) -> Answer:
    found = call.repository
    found.dispatches.append(call.body)
    payload = {"action": call.body["event_type"], "branch": found.default_branch}
    payload["client_payload"] = call.body.get("client_payload", {})
    call.github.later(call.github.tell, found, "repository_dispatch", payload, call.token.user)  # type: ignore[union-attr]
    return 204, None


@route("POST", REPO + "/actions/workflows/{workflow_id}/dispatches", ("actions", "write"))
def dispatch_workflow(call: Call) -> Answer:
    call.repository.dispatches.append(call.body | {"workflow": call.path["workflow_id"]})
    return 204, None
