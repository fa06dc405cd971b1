"""Whose turn it is, pure: what a job owes to its matrix, its concurrency group and its own failures."""

from __future__ import annotations

from trainforge.config.reasons import kind_of
from trainforge.config.result import moment
from trainforge.sender.facts import JobFacts, Policy, Stop


def asked_to_stop(job: JobFacts, policy: Policy) -> Stop | None:
    """Whether other jobs ask for the end of this one."""
    company = job.company
    if policy.fail_fast and company.failed:
        return Stop("matrix_failed", f"{company.failed} of the same matrix failed")
    if company.newer:
        return Stop("superseded", f"{company.newer} of the group {company.group} is newer")
    return None


def held(job: JobFacts, policy: Policy) -> dict[str, str]:
    """The other jobs that have to end or fail first, in words; empty when there are none."""
    company = job.company
    reasons: dict[str, str] = {}
    if company.older:
        reasons["concurrency"] = f"{company.older[0]} of the group {company.group} goes first" + _more(
            len(company.older) - 1
        )
    most = policy.max_parallel
    if most is not None and len(company.placed) >= most:
        first = company.placed[0]
        reasons["matrix"] = f"{first} runs{_more(len(company.placed) - 1)}, and max_parallel is {most}"
    return reasons


def rests_until(job: JobFacts, policy: Policy) -> float | None:
    """When the next attempt of a failed job may begin; None where it need not rest."""
    last = job.attempt
    if last is None or last.state not in {"failed", "lost"} or last.ended is None:
        return None
    if kind_of(last.code) == "now" and job.tried <= 1:
        return None
    return last.ended + policy.rest(job.id, job.tried)


def resting(job: JobFacts, policy: Policy, now: float) -> dict[str, str]:
    """Until when a failed job rests before it is tried again, in words; empty when it may go on."""
    last, until = job.attempt, rests_until(job, policy)
    if last is None or until is None or now >= until:
        return {}
    return {"retry": f"attempt {last.number + 1} begins at {moment(until)}, after {last.code}: {last.reason}"}


def _more(count: int) -> str:
    return f" (and {count} more)" if count > 0 else ""
