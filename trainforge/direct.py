"""Training without a sender anywhere: this process is the sender, for as long as one job takes."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2

from trainforge import ci, usergit
from trainforge.client import Client
from trainforge.config.errors import NotFound, SettingsError
from trainforge.config.trust import SigningKey
from trainforge.config.views import JobDetail
from trainforge.runner import Runner
from trainforge.sender.announced import each
from trainforge.sender.direct import ADDRESS, Direct, DirectSender

KEY = "TRAINFORGE_SIGNING_KEY"
TOKEN = "TRAINFORGE_GIT_TOKEN"  # noqa: S105 - a variable's name
SECRET = "TRAINFORGE_SECRET_"  # noqa: S105
LINGER_S = 30.0  # unless the runner kills it before: then the executors end the job by themselves
LAST_RESORT_S = 20.0  # from its report on; telling the executors and leaving them takes less
USERNAME = "x-access-token"
INTERRUPTED = 130
UNTOLD = "what it still has of this run ends when the next one comes, or after ten minutes"
NOBODY_HINT = (
    "on a machine: `trainforge executor trust KEY`, then `trainforge executor start --connection push`, "
    "which announces itself in what endpoint_repository names"
)
BEFORE_TRAINING = frozenset({"manifest_invalid", "timeout_queue", "policy_refused"})  # ends of no attempt


@dataclass(frozen=True)
class Commit:
    """What is trained; `rerun` asks for it once more where it was trained before."""

    commit: str
    ref: str
    rerun: bool = False


def signing_key(environment: Mapping[str, str] = os.environ, file: Path | None = None) -> SigningKey:
    """The key that the executors trust, from a file or from the environment.

    Raises:
        SettingsError: there is none, or it is damaged.
    """
    if file is not None:
        try:
            return SigningKey.parse(file.read_text(), str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{file} cannot be read: {error}") from error
    text = environment.get(KEY, "")
    if not text:
        raise SettingsError(
            f"there is no signing key: {KEY} is empty",
            hint="`trainforge direct --new-key FILE` makes one; pull requests from forks get no secrets",
        )
    return SigningKey.parse(text, KEY)


def from_workflow(runner: Runner, asked: ci.Asked, *, allow_private: bool = False) -> int:
    """Train the commit of this workflow run."""
    server, repository = runner.get("GITHUB_SERVER_URL"), runner.get("GITHUB_REPOSITORY")
    if not server or not repository:
        raise SettingsError("this is no run of GitHub Actions", hint="elsewhere use `trainforge direct`")
    wanted = Direct(
        repository=f"{server}/{repository}.git",
        key=signing_key(),
        git_username=USERNAME,
        git_token=runner.get(TOKEN),
        allow_private=allow_private,
    )
    runner.hide(wanted.git_token)
    which = Commit(runner.get("GITHUB_SHA"), runner.get("GITHUB_REF"), ci.is_rerun(runner))
    return train(wanted, which, runner, asked)


def head_of(path: Path, remote: str) -> tuple[str, Commit]:
    """The remote's address, and the commit and branch that are checked out.

    Raises:
        NotFound: no git repository, no commit or no such remote. SettingsError: no branch is checked out.
    """
    top = usergit.toplevel(path)
    commit = usergit.head(top) if top is not None else None
    if top is None or commit is None:
        raise NotFound(f"{path} is not in a git repository with a commit")
    branch = usergit.branch(top)
    if not branch:
        raise SettingsError("no branch is checked out", hint="`git switch BRANCH`, and push it")
    return usergit.remote_url(top, remote), Commit(commit, f"refs/heads/{branch}")


def train(
    wanted: Direct,
    which: Commit,
    runner: Runner,
    asked: ci.Asked,
    *,
    plan: Callable[[Client], int] | None = None,
) -> int:
    """Find the executors, have the commit trained, and report; the exit code.

    `plan` is for who only asks where it would train: it shows that, and nothing else happens.

    Raises:
        NotFound: no executor works for this run. TrainForgeError: as the sender says.
    """
    asked = replace(asked, wait=True, stop=True, linger=LINGER_S)  # nobody else looks after the job
    with DirectSender(wanted) as sender:
        transport = httpx2.HTTPTransport(uds=str(sender.api))
        with Client(ADDRESS, sender.token, transport) as client:
            _gather(sender, runner, 0.0 if plan else asked.timeout)
            if plan is not None:
                return plan(client)
            _give_secrets(client, sender.repository, which.ref, os.environ)
            request = {
                "repository": sender.repository,
                "commit": which.commit,
                "ref": which.ref,
                "manifest_path": asked.manifest,
                "overrides": dict(asked.overrides),
                "executors": list(asked.executors),
                "rerun": which.rerun,
            }
            job = client.submit(request)
            try:
                code = ci.follow_to_end(client, runner, job, asked)
            except (KeyboardInterrupt, ci.TimedOut) as error:
                _end_for_certain(error.exit_code if isinstance(error, ci.TimedOut) else INTERRUPTED)
                raise
            else:
                _tell_of_before(runner, client.job(job.id))
                return code
            finally:
                for name in sender.wait_until_told():
                    runner.say(f"TrainForge: {name} does not answer: {UNTOLD}")


def _end_for_certain(code: int) -> None:
    """Who cancels a run does not wait for a thread that waits for a remote: all that counts is told."""

    def last_resort() -> None:
        time.sleep(LAST_RESORT_S)
        sys.stdout.flush()
        os._exit(code)

    threading.Thread(target=last_resort, name="last-resort", daemon=True).start()


def _tell_of_before(runner: Runner, job: JobDetail) -> None:
    """That this is what the commit came to earlier, for who thinks that it trained just now."""
    if not job.attempts and job.result_commit and job.code not in BEFORE_TRAINING:
        again = "running the workflow again" if runner.inside else "--rerun"
        runner.say(f"TrainForge: nothing was trained now: the commit has that result; {again} trains it anew")


def _gather(sender: DirectSender, runner: Runner, patience: float) -> None:
    runner.group("Executors")
    found = sender.wait_for_first()
    runner.lines(each(found, sender.unused))
    if patience and any(one.busy for one in found) and not any(one.here for one in found):
        runner.say("TrainForge: waiting until another run is over")
        sender.wait_for_free(time.monotonic() + patience)
    runner.end_group()
    if not any(one.here for one in found):
        why = "; ".join(each(found, sender.unused)) or "none is announced on the branch trainforge-executors"
        raise NotFound(f"no executor works for this run: {why}", hint=NOBODY_HINT, code="no_executor")


def _give_secrets(client: Client, repository: str, ref: str, environment: Mapping[str, str]) -> None:
    """What the environment has for the job, kept for as long as this process lives."""
    branch = ref.removeprefix("refs/heads/")
    for name, value in environment.items():
        if name.startswith(SECRET) and value:
            client.set_secret(name.removeprefix(SECRET), repository, value, [branch])
