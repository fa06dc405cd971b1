"""Making a GitHub App from a manifest: a person agrees at GitHub, the sender gets the key, nobody copies it.

The steps are GitHub's "Registering a GitHub App from a manifest": a form with the manifest leads to a page
of GitHub's, which sends the browser back here with a code; the code is turned into the App once.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from trainforge.config.errors import Conflict, MessageInvalid, NotFound
from trainforge.config.views import GitHubAppView
from trainforge.hooks.github_api import check_api_url, convert_manifest, site_of
from trainforge.sender import sealed
from trainforge.sender.context import Sender
from trainforge.sender.github_access import app_secrets
from trainforge.sender.github_diagnosis import APP_EVENTS, APP_PERMISSIONS, hook_url, out_of_reach
from trainforge.sender.store_github import App

LIFE_S = 3600.0  # a code of GitHub's is good for as long
STATES = "github.state"
_ORGANIZATION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,38})\Z")


@dataclass(frozen=True)
class Beginning:
    """`form_url` is where the form goes, `manifest` what is in it."""

    site: str
    form_url: str
    manifest: str


def begin(sender: Sender, *, api_url: str, organization: str, by: str) -> tuple[str, float]:
    """The address of the page with the form, for whoever may have it, and when it ends (unix seconds).

    Raises:
        MessageInvalid: not an organization's name. AddressRefused: not the address of an API. Conflict:
            GitHub could not reach the App's webhook.
    """
    if out_of_reach(sender, check_api_url(api_url)):
        raise Conflict(
            f"GitHub makes no App for {sender.base_url}, which it cannot reach",
            hint="set the sender's public_url to where the internet reaches it",
        )
    if organization and not _ORGANIZATION.match(organization):
        raise MessageInvalid(f"{organization[:80]!a} is not the name of an organization")
    state, now = secrets.token_urlsafe(32), sender.now()
    sender.store.drop_documents(STATES, now - LIFE_S)
    kept = {"api_url": check_api_url(api_url), "organization": organization, "by": by, "begun": now}
    sender.store.put_document(STATES, _digest(state), kept, now)
    return f"{sender.base_url}/github/app/new?state={state}", now + LIFE_S


def form(sender: Sender, state: str) -> Beginning:
    """What the form holds. Raises NotFound when nobody began this."""
    begun = _begun(sender, state)
    site = site_of(begun["api_url"])
    whose = f"organizations/{quote(begun['organization'])}/" if begun["organization"] else ""
    return Beginning(
        site, f"{site}/{whose}settings/apps/new?state={quote(state)}", json.dumps(manifest(sender))
    )


def manifest(sender: Sender) -> dict[str, Any]:
    host = urlsplit(sender.base_url).hostname or "sender"
    return {
        "name": f"TrainForge {host}"[:34],
        "url": sender.base_url,
        "description": "Trains what is pushed, and says so here.",
        "hook_attributes": {"url": hook_url(sender), "active": True},
        "redirect_url": f"{sender.base_url}/github/app/made",
        "public": False,
        "default_permissions": dict(APP_PERMISSIONS),
        "default_events": list(APP_EVENTS),
    }


def finish(sender: Sender, state: str, code: str) -> App:
    """Keep the App that was made. The state is used up; Raises NotFound when it or the code is none."""
    begun = _begun(sender, state)
    made = convert_manifest(code, begun["api_url"])
    now = sender.now()
    app = App(int(made["id"]), begun["api_url"], str(made["slug"]), str(made["html_url"]), begun["by"], now)
    kept = {"private_key": str(made["pem"]), "hook_secrets": [str(made["webhook_secret"])]}
    sealed.keep(sender, app_secrets(app.id), kept)
    sender.store.add_app(app, f"person:{begun['by']}")
    sender.store.drop_document(STATES, _digest(state))
    return app


def view(app: App) -> GitHubAppView:
    return GitHubAppView(
        id=app.id, slug=app.slug, url=app.url, install_url=install_url(app),
        api_url=app.api_url, by=app.by, created=app.created,
    )  # fmt: skip


def install_url(app: App) -> str:
    """Where an owner gives the App repositories."""
    return f"{app.url.rstrip('/')}/installations/new"


def _begun(sender: Sender, state: str) -> dict[str, Any]:
    found = sender.store.document(STATES, _digest(state)) if 20 < len(state) < 100 else None
    if found is None or found["begun"] < sender.now() - LIFE_S:
        raise NotFound(
            "this way to a GitHub App is used up or too old",
            hint="`trainforge github connect OWNER/REPO --app` begins another",
        )
    return found


def _digest(state: str) -> str:
    return hashlib.sha256(state.encode()).hexdigest()
