"""Webhooks of git servers that are not GitHub, without I/O: who signed them, and which repository they name.

What each server sends:
GitLab, https://docs.gitlab.com/user/project/integrations/webhooks/ (a secret token, or newer, a
signature as https://www.standardwebhooks.com has it); Gitea and Forgejo, https://docs.gitea.com/usage/webhooks;
Bitbucket Cloud and Data Center, https://support.atlassian.com/bitbucket-cloud/docs/manage-webhooks/.
As everywhere, a delivery is a hint: only the repository is taken from it, and looked at.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainforge.config.errors import NotTrusted
from trainforge.hooks import scripts
from trainforge.hooks.addresses import AddressRefused, repository_id
from trainforge.hooks.github import WebhookInvalid, strict_json, verify_signature

MAX_BYTES = scripts.MAX_NOTICE_BYTES
TOLERANCE_S = 300.0
HUB = ("x-hub-signature-256", "x-hub-signature")
HEX = ("x-forgejo-signature", "x-gitea-signature", "x-gogs-signature")
EVENTS = ("x-gitlab-event", "x-forgejo-event", "x-gitea-event", "x-gogs-event", "x-event-key")
MOVES = frozenset(
    {"push hook", "tag push hook", "push", "create", "delete", "repo:push", "repo:refs_changed"}
)
_HEX = re.compile(r"[0-9a-f]{64}\Z")
_SLUG = re.compile(r"[A-Za-z0-9~._-]{1,200}\Z")


@dataclass(frozen=True)
class Pushed:
    """Something moved in a repository: under which ids it may be known, or how its path ends."""

    ids: tuple[str, ...]
    tail: str = ""


# --- who says it ----------------------------------------------------------------------------------------


def verify(secrets: Sequence[str], body: bytes, headers: Mapping[str, str], now: float) -> None:
    """Check the signature of whichever form the delivery has. Header names are in lower case.

    Raises:
        NotTrusted: it has none that is known, or none of the secrets made it.
    """
    if said := next((headers[name] for name in HUB if name in headers), ""):
        return verify_signature(secrets, body, said)
    if said := next((headers[name] for name in HEX if name in headers), ""):
        return verify_signature(secrets, body, f"sha256={said}" if _HEX.match(said) else said)
    if "webhook-signature" in headers:
        return _verify_standard(secrets, body, headers, now)
    if "x-gitlab-token" in headers:
        return _verify_token(secrets, headers["x-gitlab-token"])
    raise NotTrusted(
        "the delivery is not signed in a way that is known here",
        hint="set the sender's webhook_secret as the webhook's secret; docs/git-servers.md shows where",
    )


def _verify_token(secrets: Sequence[str], said: str) -> None:
    holds = False
    for secret in secrets:
        holds |= bool(secret) and hmac.compare_digest(secret.encode(), said.encode())
    if not holds:
        raise NotTrusted("the delivery's secret token is another", hint="compare it on both sides")


def _verify_standard(secrets: Sequence[str], body: bytes, headers: Mapping[str, str], now: float) -> None:
    """https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md"""
    number, moment = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not (number and moment.isascii() and moment.isdigit() and len(moment) < 16):
        raise NotTrusted("the delivery lacks webhook-id or webhook-timestamp")
    if abs(now - int(moment)) > TOLERANCE_S:
        raise NotTrusted("the delivery was signed at another time than it is here", hint="set both clocks")
    content = f"{number}.{moment}.".encode() + body
    said = [one.partition(",")[2] for one in headers["webhook-signature"].split(" ") if one.startswith("v1,")]
    holds = False
    for secret in secrets:
        for key in _keys(secret):
            made = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest())
            for one in said:
                holds |= hmac.compare_digest(made, one.encode())
    if not holds:
        raise NotTrusted("the delivery's signature does not hold", hint="compare the secrets on both sides")


def _keys(secret: str) -> list[bytes]:
    """A secret as it is and, of the form `whsec_...`, what it encodes."""
    keys = [secret.encode()] if secret else []
    if secret.startswith("whsec_"):
        with contextlib.suppress(binascii.Error, ValueError):
            keys.append(base64.b64decode(secret.removeprefix("whsec_"), validate=True))
    return [key for key in keys if key]


# --- what it says ---------------------------------------------------------------------------------------


def read(body: bytes, headers: Mapping[str, str]) -> Pushed | None:
    """What a delivery whose signature held is about; None where nothing was pushed.

    Raises:
        WebhookInvalid: it is none of these servers'.
    """
    event = next((headers[name] for name in EVENTS if name in headers), "")
    if not event:
        return Pushed((scripts.parse_notice(body).repository_id,))
    payload = strict_json(body)
    if event.lower() not in MOVES:
        return None
    repository = payload.get("repository")
    if event.lower().endswith("hook"):
        repository = payload.get("project") or repository
    if not isinstance(repository, dict):
        raise WebhookInvalid("the delivery names no repository")
    ids = _ids(_urls(repository))
    tail = _tail(repository) if event.lower() == "repo:refs_changed" else ""
    if not ids and not tail:
        raise WebhookInvalid("the delivery names no usable address of its repository")
    return Pushed(ids, tail)


def _urls(repository: Mapping[str, Any]) -> list[Any]:
    names = ("clone_url", "git_http_url", "ssh_url", "git_ssh_url", "html_url", "web_url", "url")
    found = [repository.get(name) for name in names]
    links = repository.get("links")
    if isinstance(links, dict):
        for name in ("clone", "html"):
            listed = links.get(name)
            for link in listed[:10] if isinstance(listed, list) else [listed]:
                found.append(link.get("href") if isinstance(link, dict) else None)
    return found


def _ids(urls: Sequence[Any]) -> tuple[str, ...]:
    found = []
    for url in urls:
        try:
            found.append(repository_id(url) if isinstance(url, str) else "")
        except AddressRefused:
            continue
    return tuple(dict.fromkeys(one for one in found if one))


def _tail(repository: Mapping[str, Any]) -> str:
    """Bitbucket Data Center names no address: `/scm/PROJECT/slug` is how each of its ends."""
    project, slug = repository.get("project"), repository.get("slug")
    key = project.get("key") if isinstance(project, dict) else None
    if not (isinstance(key, str) and isinstance(slug, str) and _SLUG.match(key) and _SLUG.match(slug)):
        return ""
    return f"/{key}/{slug}".lower()
