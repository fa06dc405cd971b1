"""Pull requests, issues and what is said in them, as GitHub's API has them."""

from __future__ import annotations

from typing import Any

from support.github.calls import Call, Refusal, invalid, route
from support.github.description import example, overlaid
from support.github.repository_routes import Answer, changed_files, commit_json, sha_of
from support.github.state import REPO, Json, Repository, node_id, stamp, user

MAX_COMMENT = 65536


def pull_json(github: Any, found: Repository, pull: Json, *, whole: bool = True) -> Json:
    """`pull` is what the state keeps: number, title, body, user, head, head_repository, base, state."""
    path = REPO + "/pulls/{pull_number}" if whole else REPO + "/pulls"
    made = example("GET", path, found.base)
    made = made if whole else made[0]
    number = pull["number"]
    head_repository = github.by_id(pull["head_repository"])
    url = f"{found.api}/pulls/{number}"
    who = user(pull["user"], found.base, found.site)
    merged = {"merged": pull.get("merged", False), "merged_by": None, "mergeable": True} if whole else {}
    return overlaid(
        made,
        **merged,
        id=pull["id"], node_id=node_id(), number=number, state=pull["state"], locked=False, url=url,
        title=pull["title"], body=pull["body"], user=who, draft=False, labels=[], milestone=None,
        html_url=f"{found.site}/{found.full_name}/pull/{number}", assignee=None, assignees=[],
        issue_url=f"{found.api}/issues/{number}", comments_url=f"{found.api}/issues/{number}/comments",
        commits_url=f"{url}/commits", statuses_url=f"{found.api}/statuses/{pull['head_sha']}",
        active_lock_reason=None, requested_reviewers=[], requested_teams=[], closed_at=None,
        created_at=pull["created"], updated_at=stamp(), merged_at=None, merge_commit_sha=None,
        author_association="OWNER" if pull["user"] == found.owner else "CONTRIBUTOR",
        head=_end(head_repository, pull["head"], pull["head_sha"]),
        base=_end(found, pull["base"], found.commit_of(f"refs/heads/{pull['base']}")),
    )  # fmt: skip


def _end(found: Repository, ref: str, sha: str) -> Json:
    owner = user(found.owner, found.base, found.site)
    return {
        "label": f"{found.owner}:{ref}",
        "ref": ref,
        "sha": sha,
        "user": owner,
        "repo": found.simple_json(),
    }


def _pull(call: Call) -> Json:
    found = call.repository.pulls.get(int(call.path["pull_number"]))
    if found is None:
        raise Refusal(404, "Not Found")
    return found


@route("GET", REPO + "/pulls", ("pull_requests", "read"))
def pulls(call: Call) -> Answer:
    found = call.repository
    state, head, base = call.query.get("state", "open"), call.query.get("head"), call.query.get("base")
    wanted = [
        pull_json(call.github, found, pull, whole=False)
        for pull in reversed(found.pulls.values())
        if state in ("all", pull["state"])
        and base in (None, pull["base"])
        and head in (None, f"{call.github.by_id(pull['head_repository']).owner}:{pull['head']}")
    ]
    return 200, call.page(wanted)


@route("POST", REPO + "/pulls", ("pull_requests", "write"))
def add_pull(call: Call) -> Answer:
    base, head = call.body["base"], call.body["head"]
    if not call.repository.commit_of(f"refs/heads/{base}"):
        raise invalid("PullRequest", "base", "is invalid")
    if base == head:
        raise invalid("PullRequest", "head", f"No commits between {base} and {head}")
    raise call.github.wrong(invalid("PullRequest", "head", "pull requests are opened by people here"))


@route("GET", REPO + "/pulls/{pull_number}", ("pull_requests", "read"))
def one_pull(call: Call) -> Answer:
    return 200, pull_json(call.github, call.repository, _pull(call))


@route("GET", REPO + "/pulls/{pull_number}/files", ("pull_requests", "read"))
def pull_files(call: Call) -> Answer:
    found, pull = call.repository, _pull(call)
    base = found.commit_of(f"refs/heads/{pull['base']}")
    fork = found.run("merge-base", base, pull["head_sha"], check=False) or base
    return 200, call.page(changed_files(found, fork, pull["head_sha"]))


@route("GET", REPO + "/pulls/{pull_number}/commits", ("pull_requests", "read"))
def pull_commits(call: Call) -> Answer:
    found, pull = call.repository, _pull(call)
    base = found.commit_of(f"refs/heads/{pull['base']}")
    shas = found.run("rev-list", "--reverse", f"{base}..{pull['head_sha']}").split()
    return 200, call.page([commit_json(found, sha) for sha in shas])


@route("GET", REPO + "/commits/{commit_sha}/pulls", ("pull_requests", "read"))
def pulls_of_commit(call: Call) -> Answer:
    found = call.repository
    sha = sha_of(found, call.path["commit_sha"])
    wanted = [pull for pull in found.pulls.values() if pull["head_sha"] == sha]
    return 200, call.page([pull_json(call.github, found, pull, whole=False) for pull in wanted])


# --- issues and comments --------------------------------------------------------------------------------


def issue_json(found: Repository, number: int) -> Json:
    source = found.pulls.get(number) or found.issues.get(number)
    if source is None:
        raise Refusal(404, "Not Found")
    made = example("GET", REPO + "/issues/{issue_number}", found.base)
    url = f"{found.api}/issues/{number}"
    issue = overlaid(
        made,
        id=source["id"], number=number, title=source["title"], body=source["body"], state=source["state"],
        user=user(source["user"], found.base, found.site), url=url, comments_url=f"{url}/comments",
        repository_url=found.api, html_url=f"{found.site}/{found.full_name}/issues/{number}", labels=[],
        assignee=None, assignees=[], milestone=None, closed_at=None, closed_by=None,
        active_lock_reason=None, locked=False,
        comments=sum(1 for one in found.comments.values() if one["_issue"] == number),
    )  # fmt: skip
    for key in ("pull_request", "repository", "state_reason"):
        issue.pop(key, None)
    if number in found.pulls:
        page = f"{found.site}/{found.full_name}/pull/{number}"
        issue["html_url"] = page
        issue["pull_request"] = {
            "url": f"{found.api}/pulls/{number}", "html_url": page,
            "diff_url": f"{page}.diff", "patch_url": f"{page}.patch",
        }  # fmt: skip
    return issue


def comment_json(comment: Json) -> Json:
    return {key: value for key, value in comment.items() if not key.startswith("_")}


def make_comment(
    github: Any, found: Repository, number: int, *, login: str, body: str, bot: bool = False
) -> Json:
    made = example("POST", REPO + "/issues/{issue_number}/comments", found.base, "201")
    comment_id = next(github.numbers)
    page = f"{found.site}/{found.full_name}/issues/{number}"
    roles = {"admin": "OWNER", "maintain": "MEMBER", "write": "COLLABORATOR"}
    comment = overlaid(
        made,
        id=comment_id, node_id=node_id(), body=body, html_url=f"{page}#issuecomment-{comment_id}",
        url=f"{found.api}/issues/comments/{comment_id}", issue_url=f"{found.api}/issues/{number}",
        user=user(login, found.base, found.site, "Bot" if bot else "User"),
        created_at=stamp(), updated_at=stamp(), performed_via_github_app=None, _issue=number,
        author_association=roles.get(found.roles.get(login, ""), "NONE"),
    )  # fmt: skip
    found.comments[comment_id] = comment
    return comment


def _check_body(call: Call) -> str:
    body = str(call.body["body"])
    if not body.strip() or len(body) > MAX_COMMENT:
        raise call.github.wrong(
            invalid("IssueComment", "body", "is blank or too long (maximum is 65536 characters)")
        )
    return body


def _comment(call: Call) -> Json:
    found = call.repository.comments.get(int(call.path["comment_id"]))
    if found is None:
        raise Refusal(404, "Not Found")
    return found


@route("GET", REPO + "/issues/{issue_number}", ("issues", "read"))
def one_issue(call: Call) -> Answer:
    return 200, issue_json(call.repository, int(call.path["issue_number"]))


@route("GET", REPO + "/issues/{issue_number}/comments", ("issues", "read"))
def comments(call: Call) -> Answer:
    found, number = call.repository, int(call.path["issue_number"])
    issue_json(found, number)
    said = [comment_json(one) for one in found.comments.values() if one["_issue"] == number]
    return 200, call.page(said)


@route("POST", REPO + "/issues/{issue_number}/comments", ("issues", "write"))
def add_comment(call: Call) -> Answer:
    found, number = call.repository, int(call.path["issue_number"])
    issue_json(found, number)
    assert call.token is not None
    comment = make_comment(
        call.github, found, number,
        login=call.token.user, body=_check_body(call), bot=call.token.app is not None,
    )  # fmt: skip
    call.github.later(call.github.tell_comment, found, comment, "created", call.token.user)
    return 201, comment_json(comment)


@route("GET", REPO + "/issues/comments/{comment_id}", ("issues", "read"))
def one_comment(call: Call) -> Answer:
    return 200, comment_json(_comment(call))


@route("PATCH", REPO + "/issues/comments/{comment_id}", ("issues", "write"))
def change_comment(call: Call) -> Answer:
    comment = _comment(call)
    comment |= {"body": _check_body(call), "updated_at": stamp()}
    assert call.token is not None
    call.github.later(call.github.tell_comment, call.repository, comment, "edited", call.token.user)
    return 200, comment_json(comment)


@route("DELETE", REPO + "/issues/comments/{comment_id}", ("issues", "write"))
def drop_comment(call: Call) -> Answer:
    del call.repository.comments[_comment(call)["id"]]
    return 204, None


@route("POST", REPO + "/issues/comments/{comment_id}/reactions", ("issues", "write"))
def react(call: Call) -> Answer:
    found, comment = call.repository, _comment(call)
    path = REPO + "/issues/comments/{comment_id}/reactions"
    made = example("POST", path, found.base, "201")
    assert call.token is not None
    who = user(call.token.user, found.base, found.site)
    reaction = overlaid(made, id=next(call.github.numbers), content=call.body["content"], user=who)
    found.reactions.append(
        {"comment": comment["id"], "content": call.body["content"], "user": call.token.user}
    )
    return 201, reaction
