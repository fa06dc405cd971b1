"""The post-receive hook for bare repositories elsewhere, and the notice that it sends."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainforge.config.errors import Conflict, NotFound, SettingsError
from trainforge.hooks import post_receive
from trainforge.hooks.addresses import AddressRefused, repository_id, validate_commit, validate_ref
from trainforge.hooks.github import WebhookInvalid, strict_json

MARK = "# Installed by trainforge hooks install"
MAX_NOTICE_BYTES = 4 * 1024 * 1024
_SCRIPT = """\
#!/bin/sh
{mark}; a hook that was here before is kept beside it and runs first.
input=$(cat)
if [ -x "$0.before-trainforge" ]; then
    printf '%s\\n' "$input" | "$0.before-trainforge" "$@"
fi
printf '%s\\n' "$input" | {python} -I "$(dirname "$0")/trainforge-post-receive.py"
exit 0
"""


@dataclass(frozen=True)
class Notice:
    """What a post-receive hook says: these refs of this repository moved. A hint, as every other."""

    repository_id: str
    refs: tuple[str, ...]


def install_post_receive(repo: Path, sender_url: str, secret_file: Path, *, repository: str = "") -> Path:
    """Make a bare repository tell the sender of every push; returns the hook's path.

    `secret_file` has the sender's webhook secret and is read at each push. `repository` is the URL by
    which the sender knows the repository, if that is not its path. Installing again replaces.

    Raises:
        NotFound: no bare repository there. SettingsError: no secret file. Conflict: a foreign hook is
        in the way, and one was kept before.
    """
    repo = repo.resolve()
    if not (repo / "HEAD").is_file() or not (repo / "objects").is_dir():
        raise NotFound(
            f"{repo} is not a bare repository", hint="give the path that ends in .git on the server"
        )
    if not sender_url.startswith(("http://", "https://")):
        raise SettingsError(f"{sender_url!r} is not the address of a sender", hint="such as http://host:8420")
    if not secret_file.is_file():
        raise SettingsError(f"there is no file {secret_file}", hint="put the sender's webhook secret there")
    hooks = repo / "hooks"
    hooks.mkdir(exist_ok=True)
    hook = hooks / "post-receive"
    _keep(hook)
    settings = {
        "sender": sender_url.rstrip("/"),
        "repository": repository or str(repo),
        "secret_file": str(secret_file.resolve()),
    }
    _write(hooks / "trainforge.json", json.dumps(settings, indent=2) + "\n", 0o644)
    _write(hooks / "trainforge-post-receive.py", Path(post_receive.__file__).read_text(), 0o644)
    _write(hook, _SCRIPT.format(mark=MARK, python=shlex.quote(sys.executable)), 0o755)
    return hook


def parse_notice(body: bytes) -> Notice:
    """The hint in a notice whose signature held (`github.verify_signature`).

    Raises:
        WebhookInvalid: not a notice.
    """
    if len(body) > MAX_NOTICE_BYTES:
        raise WebhookInvalid("the notice is too large")
    payload = strict_json(body)
    repository, refs = payload.get("repository"), payload.get("refs")
    if not isinstance(repository, str) or not isinstance(refs, list):
        raise WebhookInvalid("the notice lacks repository or refs")
    try:
        return Notice(repository_id(repository), tuple(_ref(entry) for entry in refs))
    except AddressRefused as error:
        raise WebhookInvalid(error.message) from error


def _ref(entry: Any) -> str:
    if not isinstance(entry, dict) or set(entry) != {"old", "new", "ref"}:
        raise WebhookInvalid("a ref of the notice is not old, new and ref")
    validate_commit(str(entry["old"]))
    validate_commit(str(entry["new"]))
    return validate_ref(str(entry["ref"]))


def _keep(hook: Path) -> None:
    if not hook.exists() or MARK in hook.read_text(errors="replace"):
        return
    kept = hook.with_name(f"{hook.name}.before-trainforge")
    if kept.exists():
        raise Conflict(f"both {hook} and {kept} are there", hint="merge them by hand, then install again")
    hook.rename(kept)


def _write(path: Path, text: str, mode: int) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text)
    aside.chmod(mode)
    aside.replace(path)
