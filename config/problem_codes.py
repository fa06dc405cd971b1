"""The stable codes of refused requests (RFC 9457), with their HTTP statuses and what to do about each.

A job that failed has a code too, of `reasons.REASONS`; those that also refuse requests are here as well.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ProblemCode:
    statuses: tuple[int, ...]
    meaning: str
    hint: str


def codes_of(status: int) -> list[str]:
    """The codes that an answer of this status may have."""
    return sorted(code for code, one in PROBLEM_CODES.items() if status in one.statuses)


PROBLEM_CODES: dict[str, ProblemCode] = {
    "refused": ProblemCode((400,), "it cannot be done as asked", "read the detail and the hint"),
    "bad_request": ProblemCode((400,), "the request is not usable HTTP", "check the client"),
    "message_invalid": ProblemCode(
        (400, 422),
        "the body or the query does not have its declared form",
        "compare it with `/api/openapi.json`",
    ),
    "manifest_invalid": ProblemCode(
        (422,), "the manifest cannot be used", "mend each of `problems` at its place"
    ),
    "address_refused": ProblemCode(
        (422,), "a URL, ref, commit or path that is not handed to git", "use a form that the hint names"
    ),
    "settings_invalid": ProblemCode(
        (400,), "a setting, or a combination of settings, cannot work", "mend the setting named"
    ),
    "not_trusted": ProblemCode(
        (401,), "no token, session or signature that is valid here", "log in, or set the token or secret"
    ),
    "executor_unknown": ProblemCode(
        (401,), "no such executor has joined here", "join this sender first, with a token of its own"
    ),
    "clock_skew": ProblemCode((401,), "signed at another time than it is here", "set both clocks"),
    "forbidden": ProblemCode((403,), "known, but not allowed to do this", "read the detail"),
    "role_needed": ProblemCode(
        (403,), "this takes a higher role", "an admin changes it: `trainforge user role NAME ROLE`"
    ),
    "executor_removed": ProblemCode(
        (403,), "this executor was removed", "join again with a new token, if it should be back"
    ),
    "policy_refused": ProblemCode(
        (403,), "the executor's own policy forbids this job", "ask the machine's owner"
    ),
    "secret_refused": ProblemCode(
        (403,),
        "a secret is not for this job's branch",
        "allow the branch with `trainforge secret set --branch`",
    ),
    "secret_missing": ProblemCode(
        (404,), "a secret that the manifest names is not set", "set it with `trainforge secret set`"
    ),
    "not_found": ProblemCode((404,), "there is no such thing, or no such address", "list what there is"),
    "method_not_allowed": ProblemCode(
        (405,), "the address knows other methods", "see `Allow` in the answer's headers"
    ),
    "conflict": ProblemCode((409,), "true a moment ago, no longer", "look at it again, then decide"),
    "too_large": ProblemCode((413,), "the body is larger than is read here", "send less at once"),
    "bundle_malformed": ProblemCode((422,), "the file is no ZIP, or not one alone", "zip the project again"),
    "bundle_contradiction": ProblemCode(
        (422,), "an entry of the ZIP is not what its directory says", "zip the project again"
    ),
    "bundle_overlap": ProblemCode(
        (422,), "the ZIP's entries overlap, or data lie between them", "zip the project again"
    ),
    "bundle_empty": ProblemCode((422,), "there is no file in the ZIP", "zip the project's files"),
    "bundle_path": ProblemCode(
        (422,), "an entry's name is not one path inside the project everywhere", "rename it, and zip again"
    ),
    "bundle_duplicate": ProblemCode(
        (422,), "two entries have one name, for some systems at least", "rename one, and zip again"
    ),
    "bundle_git": ProblemCode(
        (422,), "the ZIP has files of a git repository itself", "leave `.git` and `.gitmodules` out"
    ),
    "bundle_special": ProblemCode((422,), "the ZIP has links or devices", "zip the files that they lead to"),
    "bundle_encrypted": ProblemCode((422,), "the ZIP has a password", "zip it without one"),
    "bundle_compression": ProblemCode((422,), "the ZIP is packed in an unusual way", "use deflate"),
    "bundle_timeout": ProblemCode((422,), "the ZIP takes too long to read", "put less into it"),
    "bundle_too_large": ProblemCode(
        (413,), "the ZIP has too much in it, packed or unpacked", "leave data sets to `data:` in the manifest"
    ),
    "too_many": ProblemCode((429,), "more requests than are answered", "wait as long as `Retry-After` says"),
    "internal": ProblemCode((500,), "TrainForge itself failed", "report it, with the sender's log"),
    "unreachable": ProblemCode(
        (503,), "the other side cannot be reached now", "try again, then check the network"
    ),
    "busy": ProblemCode((503,), "the executor has no room for another node", "nothing: it is asked again"),
    "disk_full": ProblemCode(
        (503,), "there is no room, and nothing of it was taken on", "free space on the disk named"
    ),
    "git_failed": ProblemCode((400,), "git failed in another way", "read git's words in the detail"),
    "git_too_old": ProblemCode((400,), "git is missing or too old", "install the version named"),
    "git_auth_failed": ProblemCode(
        (403,), "the remote wants other credentials", "check the credential and its access"
    ),
    "git_not_found": ProblemCode(
        (404,),
        "no such repository, ref, commit or path on the remote",
        "check the address, and push the commit",
    ),
    "git_rejected": ProblemCode((409,), "the ref moved on the remote meanwhile", "try again"),
    "git_blocked": ProblemCode(
        (409,), "the remote refuses this content", "read what it says, and mend its rules or the content"
    ),
    "git_too_large": ProblemCode(
        (413,),
        "the remote sends more than is taken of a repository",
        "keep large files out of it: Git LFS, `data`",
    ),
    "git_unreachable": ProblemCode((503,), "the remote cannot be reached now", "try again later"),
    "git_timeout": ProblemCode((503,), "git was stopped at its time limit", "try again later"),
}
