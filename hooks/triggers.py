"""Which ref changes ask for training, and why the others do not. Pure: facts in, decision out.

A webhook, a poll or a watcher is only a hint to look; what counts is the difference between the heads
that were handled and the heads that are (`pending_changes`), and the files that differ between the two
trees (`decide`). So a lost, repeated, late or reordered hint changes nothing.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate

from trainforge.config.manifest_models import Push

BRANCH, TAG = "refs/heads/", "refs/tags/"
USUAL = ("refs/heads/main", "refs/heads/master")  # what others are compared with
MANIFEST = "trainforge.yaml"
RESULTS_BRANCH = "trainforge-results"
EXECUTORS_BRANCH = "trainforge-executors"
META_BRANCH = "trainforge/meta"
SUBMIT_BRANCHES = "trainforge/submit/"
OWN_ADDRESS = "trainforge@users.noreply.invalid"  # the author of what TrainForge commits
SKIP = re.compile(r"\[(?:skip train|train skip|no train)\]", re.IGNORECASE)


@dataclass(frozen=True)
class RefChange:
    """A ref's old and new commit; None where the ref did not or does not exist."""

    ref: str
    old: str | None
    new: str | None

    @property
    def branch(self) -> str | None:
        return self.ref.removeprefix(BRANCH) if self.ref.startswith(BRANCH) else None

    @property
    def tag(self) -> str | None:
        return self.ref.removeprefix(TAG) if self.ref.startswith(TAG) else None


@dataclass(frozen=True)
class Decision:
    """The manifests that ask for a job, or in words why none does; `skipped` says so per manifest."""

    manifests: tuple[str, ...] = ()
    reason: str = ""
    skipped: Mapping[str, str] = field(default_factory=dict)


def pending_changes(handled: Mapping[str, str], heads: Mapping[str, str]) -> list[RefChange]:
    """What changed between the refs handled last and the refs now, both as full name -> commit."""
    refs = sorted(handled.keys() | heads.keys())
    changes = (RefChange(ref, handled.get(ref), heads.get(ref)) for ref in refs)
    return [change for change in changes if change.old != change.new]


def is_manifest(path: str) -> bool:
    """`trainforge.yaml` in any folder, and `<name>.trainforge.yaml` for several in one."""
    name = path.rsplit("/", 1)[-1]
    return name == MANIFEST or (name.endswith(f".{MANIFEST}") and name != f".{MANIFEST}")


OWN_BRANCHES = {
    RESULTS_BRANCH: "this is the results branch",
    EXECUTORS_BRANCH: "this is the branch where executors publish their endpoints",
    META_BRANCH: "this is the branch where a sender notes that it works for the repository",
}


def ignored_ref(ref: str, results_branches: Iterable[str] = (RESULTS_BRANCH,)) -> str:
    """Why nothing on this ref ever starts a job, or an empty string."""
    if ref.startswith("refs/trainforge/"):
        return "TrainForge's own refs start no jobs"
    if not ref.startswith(BRANCH):
        return "" if ref.startswith(TAG) else "only branches and tags start jobs"
    branch = ref.removeprefix(BRANCH)
    if branch.startswith(SUBMIT_BRANCHES):
        return "`trainforge submit` sent this, and asks for its job itself"
    own = {**dict.fromkeys(results_branches, OWN_BRANCHES[RESULTS_BRANCH]), **OWN_BRANCHES}
    return own.get(branch, "")


def never_trigger(
    change: RefChange, message: str = "", results_branches: Iterable[str] = (), author: str = ""
) -> str:
    """Why this change is no trigger whatever its files are, or an empty string: then compare trees."""
    if reason := ignored_ref(change.ref, results_branches):
        return reason
    if change.new is None:
        return "the branch was deleted" if change.branch is not None else "the tag was deleted"
    if author == OWN_ADDRESS:
        return "TrainForge made this commit itself"
    if marker := SKIP.search(message):
        return f"the commit message says {marker[0]}"
    return ""


def decide(
    change: RefChange,
    changed: Sequence[tuple[str, str]],
    *,
    message: str = "",
    author: str = "",
    manifests: Sequence[str] = (),
    rules: Mapping[str, Push] | None = None,
    results_branches: Iterable[str] = (RESULTS_BRANCH,),
) -> Decision:
    """Which manifests a ref change asks to run.

    `changed` are `(status, path)` between the trees (of a new branch, from its merge base; of a tag, from
    nothing), `manifests` all manifests at the new commit, `rules` the `on.push` of those that have one;
    a manifest that cannot be read has none and is triggered by its own change alone. `message`
    and the address of its `author` are the new commit's.
    """
    if reason := never_trigger(change, message, results_branches, author):
        return Decision(reason=reason)
    touched = {path: status for status, path in changed}
    present = {path for path in {*manifests, *filter(is_manifest, touched)} if touched.get(path) != "D"}
    chosen, skipped = [], {}
    for path in sorted(present):
        why_not = _refusal(change, path, touched, (rules or {}).get(path, Push()))
        if why_not:
            skipped[path] = why_not
        else:
            chosen.append(path)
    if chosen:
        return Decision(tuple(chosen), skipped=skipped)
    return Decision(reason=_no_job(present, touched, skipped), skipped=skipped)


def _refusal(change: RefChange, manifest: str, touched: Mapping[str, str], rules: Push) -> str:
    """Why this manifest does not run for this change, or an empty string."""
    if change.tag is not None:
        return _tag_refusal(change.tag, rules)
    branch = change.branch or ""
    if not matches(branch, rules.branches):
        return f"on.push.branches does not name {branch}"
    if manifest in touched or any(matches(path, rules.paths) for path in touched):
        return ""
    if not rules.paths:
        return f"{manifest} did not change"
    return f"neither {manifest} nor a file of on.push.paths changed"


def _tag_refusal(tag: str, rules: Push) -> str:
    if not rules.tags:
        return "on.push.tags names no tags"
    return "" if matches(tag, rules.tags) else f"on.push.tags does not name {tag}"


def _no_job(present: set[str], touched: Mapping[str, str], skipped: Mapping[str, str]) -> str:
    deleted = sorted(path for path, status in touched.items() if is_manifest(path) and status == "D")
    if not touched and not present:
        return "no files changed"
    if not present:
        return f"{deleted[0]} was deleted" if deleted else f"there is no {MANIFEST} at this commit"
    reasons = list(dict.fromkeys(skipped.values()))
    if all(reason.endswith("did not change") for reason in reasons):
        return "no manifest changed"
    return "; ".join(reasons[:3])


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether patterns name this: `*` and `?` within a path component, `**` for any number of them.

    The last pattern that matches counts. One that begins with `!` takes names away; if only such are
    given, all others are meant.
    """
    result = bool(patterns) and all(pattern.startswith("!") for pattern in patterns)
    parts = name.split("/")
    for pattern in patterns:
        if _matches_parts(parts, pattern.removeprefix("!").removeprefix("/").split("/")):
            result = not pattern.startswith("!")
    return result


def _matches_parts(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """By the set of positions that each component of the pattern can end at: no backtracking to abuse."""
    positions = {0}
    for index, component in enumerate(pattern):
        if component == "**":
            inside = 0 < index == len(pattern) - 1  # `src/**` is what lies in src, not src itself
            positions = set(range(min(positions) + inside, len(parts) + 1))
        else:
            glob = _component(component)
            positions = {at + 1 for at in positions if at < len(parts) and glob.match(parts[at])}
        if not positions:
            return False
    return len(parts) in positions


@functools.lru_cache(maxsize=1024)
def _component(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern.replace("[", "[[]")))
