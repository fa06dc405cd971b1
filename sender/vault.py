"""The secrets of repositories: set by people, kept encrypted, given to the jobs that may have them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence

from sqlalchemy.engine import RowMapping

from trainforge.config.errors import (
    Forbidden,
    MessageInvalid,
    NotFound,
    TooLarge,
)
from trainforge.config.messages import NodeKey, SealedSecrets, SecretsAsk
from trainforge.config.redact import MIN_LENGTH
from trainforge.config.sealing import StoredKey, purpose, seal
from trainforge.config.trust import SECRETS_TYPE
from trainforge.config.variable_names import secret_fault
from trainforge.hooks import git, triggers
from trainforge.hooks.gitread import is_ancestor
from trainforge.sender import events, publisher
from trainforge.sender.context import Sender
from trainforge.sender.schedules import default_ref
from trainforge.sender.sealed import KEYS, decrypt, encrypt, keys_of, read_keys, write_keys
from trainforge.sender.store_secrets import StoredSecret, branch_words

MAX_BYTES = 16 * 1024
MAX_JOB_BYTES = 32 * 1024  # of all the secrets of one job
LIFE_S = 60


# --- what people do -------------------------------------------------------------------------------------


def put(
    sender: Sender, *, name: str, repository: str, value: str, branches: Sequence[str], by: str, actor: str
) -> tuple[StoredSecret, list[str]]:
    """Set or replace a secret; gives what is kept of it, and remarks for whoever set it.

    Raises:
        MessageInvalid: the name or the value cannot be used. NotFound: no such repository.
    """
    if fault := secret_fault(name):
        raise MessageInvalid(f"{name[:128]!r} cannot be a secret's name", hint=fault)
    if unusable := _value_fault(value):
        raise MessageInvalid(f"this value of {name} cannot be kept: {unusable[0]}", hint=unusable[1])
    repository_id = repository_of(sender, repository)
    wanted = list(dict.fromkeys(branches))
    with KEYS:  # as long as the key counts that it is encrypted with
        sealed = encrypt(read_keys(sender)[0], repository_id, name, value)
        made = StoredSecret(repository_id, name, sealed, wanted, sender.now(), by)
        sender.store.put_secret(made, actor)
    return made, _remarks(value)


def _value_fault(value: str) -> tuple[str, str] | None:
    if len(value) < MIN_LENGTH:
        return (
            f"it is shorter than {MIN_LENGTH} characters",
            "masking so little would hide ordinary text, so it could not be kept out of logs",
        )
    if "\0" in value or not value.strip():
        return "a variable cannot hold it", "give it as text"
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return "it is not text", "give it as UTF-8"
    return (
        (f"it is larger than {MAX_BYTES} bytes", "keep a reference to it instead")
        if size > MAX_BYTES
        else None
    )


def _remarks(value: str) -> list[str]:
    """What cannot be masked of this value."""
    found = []
    try:
        structured = isinstance(json.loads(value), (dict, list))
    except (ValueError, RecursionError):
        structured = False
    if structured:
        found.append(
            "this is JSON: it is masked as a whole and line by line, what a program takes out of it is not"
        )
    if any(0 < len(line.strip()) < MIN_LENGTH for line in value.splitlines()):
        found.append(f"its lines of fewer than {MIN_LENGTH} characters are not masked by themselves")
    return found


def repository_of(sender: Sender, named: str) -> str:
    """The id of a repository; `builtin:<name>` may be one that has yet to be pushed for the first time."""
    if named.startswith("builtin:"):
        return named
    return sender.store.repository(named).id


def remove(sender: Sender, name: str, repository: str, actor: str) -> StoredSecret:
    """Raises NotFound."""
    repository_id = repository_of(sender, repository)
    found = [secret for secret in sender.store.secrets(repository_id) if secret.name == name]
    if not found or not sender.store.drop_secret(repository_id, name, actor, sender.now()):
        raise NotFound(f"{repository} has no secret {name[:128]}", hint="`trainforge secret list` shows them")
    return found[0]


def rotate(sender: Sender, actor: str) -> int:
    """Encrypt every secret with a new key and drop the old one; safe to be cut short at any point."""
    new = StoredKey.generate()
    with KEYS:
        old = read_keys(sender)
        write_keys(sender, [new, *old])

        def again(secret: StoredSecret) -> str:
            return encrypt(new, secret.repository_id, secret.name, decrypt(old, secret))

        count = sender.store.reseal_secrets(again, actor, sender.now())
        write_keys(sender, [new])
    return count


# --- what executors get ---------------------------------------------------------------------------------


def give(sender: Sender, executor: str, node: NodeKey, ask: SecretsAsk) -> SealedSecrets:
    """The secrets that a node's manifest names, for the executor that holds its lease.

    Raises:
        TrainForgeError: not its node now (as `check_holder`); not the manifest's names; `secret_missing`
        and `secret_refused`, which end the job.
    """
    sender.store.check_holder(executor, node, ask.token, sender.now())
    values = _values(sender, sender.store.job(node.job), ask.names)
    if len(json.dumps(values, ensure_ascii=False).encode()) > MAX_JOB_BYTES:
        raise TooLarge(f"the secrets of this job have together more than {MAX_JOB_BYTES} bytes")
    now = int(sender.now())
    claims = {
        "iss": sender.id, "aud": executor, "sub": str(node), "jti": secrets.token_urlsafe(16),
        "iat": now, "exp": now + LIFE_S, "secrets": values,
    }  # fmt: skip
    key = sender.keys.signing(executor, sender.now())
    return SealedSecrets(sealed=seal(key.sign(SECRETS_TYPE, claims), ask.key, purpose(node, ask.token)))


def _values(sender: Sender, job: RowMapping, names: Sequence[str]) -> dict[str, str]:
    manifest = publisher.manifest_of(job)
    wanted = set(names)
    if not wanted <= set(manifest.secrets if manifest else ()):
        raise Forbidden("the job's manifest does not name these secrets")
    repo = sender.store.repository(job["repository_id"])
    kept = {secret.name: secret for secret in sender.store.secrets(repo.id)}
    again = f"then `trainforge retry {job['id'][:8]}`"
    for name in sorted(wanted - set(kept)):
        raise NotFound(
            f"the secret {name} is not set for {repo.name}",
            hint=f"`trainforge secret set {name} --repository {repo.name}`, {again}",
            code="secret_missing",
        )
    granted = _Grants(sender, job)
    for name in sorted(wanted):
        if why := granted.refusal(kept[name].branches):
            raise Forbidden(
                f"the secret {name} is for {branch_words(kept[name].branches)} of {repo.name}, and {why}",
                hint=f"train there, or set it with --branch, {again}",
                code="secret_refused",
            )
    keys = keys_of(sender)
    return {name: decrypt(keys, kept[name]) for name in sorted(wanted)}


class _Grants:
    """Whether one job comes from a branch that may have a secret."""

    def __init__(self, sender: Sender, job: RowMapping) -> None:
        self._sender, self._job = sender, job
        self._place = events.place_of(sender, sender.store.repository(job["repository_id"]))

    def refusal(self, branches: Sequence[str]) -> str:
        """Why not; empty if it may."""
        ref = str(self._job["ref"])
        branch = ref.removeprefix(triggers.BRANCH)
        if branch == ref:
            return f"this job comes from {ref or 'no branch'}"
        if branches:
            allowed = triggers.matches(branch, branches)
        else:
            allowed = ref == default_ref(self._place, self._sender.store.heads(self._place.repo.id))
        if not allowed:
            return f"this job comes from {branch}"
        return "" if self._on_branch(ref) else f"this job's commit is not on {branch}"

    def _on_branch(self, ref: str) -> bool:
        """The name of a branch is only what somebody said: the commit has to be in its history."""
        commit, place = self._job["commit"], self._place
        if place.builtin:
            return is_ancestor(place.mirror, commit, ref)
        if self._sender.store.heads(place.repo.id).get(ref) == commit:
            return True
        hold = f"refs/trainforge/secrets/{ref.removeprefix('refs/')}"
        tip = git.fetch_ref(
            place.mirror, place.url, ref,
            hold=hold, depth=0, credential=place.credential, allow_file=place.local,
        )  # fmt: skip
        return is_ancestor(place.mirror, commit, tip)
