"""Webhooks of GitLab, Gitea, Forgejo and Bitbucket, in the forms that their documentation publishes."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainforge.config.errors import NotTrusted, TrainForgeError
from trainforge.hooks import forges
from trainforge.hooks.forges import Pushed
from trainforge.hooks.github import WebhookInvalid

SECRET, NOW = "a secret of both sides", 1_790_000_000
AFTER, NEVER = "da1560886d4f094c3e6c9ef40349f7d38b5d27d7", "0" * 40

GITLAB = {
    "object_kind": "push",
    "event_name": "push",
    "before": "95790bf891e76fee5e1747ab589903a6a1f80f22",
    "after": AFTER,
    "ref": "refs/heads/master",
    "project": {
        "id": 15,
        "name": "Diaspora",
        "web_url": "http://example.com/mike/diaspora",
        "git_ssh_url": "git@example.com:mike/diaspora.git",
        "git_http_url": "http://example.com/mike/diaspora.git",
        "path_with_namespace": "mike/diaspora",
    },
    "repository": {"name": "Diaspora", "url": "git@example.com:mike/diaspora.git"},
}
GITEA = {
    "ref": "refs/heads/develop",
    "before": "28e1879d029cb852e4844d9c718537df08844e03",
    "after": "bffeb74224043ba2feb48d137756c8a9331c449a",
    "repository": {
        "id": 140,
        "full_name": "gitea/webhooks",
        "html_url": "http://localhost:3000/gitea/webhooks",
        "ssh_url": "ssh://gitea@localhost:2222/gitea/webhooks.git",
        "clone_url": "http://localhost:3000/gitea/webhooks.git",
    },
}
BITBUCKET = {
    "actor": {"type": "user"},
    "repository": {
        "type": "repository",
        "full_name": "team_name/repo_name",
        "links": {
            "self": {"href": "https://api.bitbucket.org/2.0/repositories/team_name/repo_name"},
            "html": {"href": "https://bitbucket.org/team_name/repo_name"},
        },
    },
    "push": {"changes": [{"new": {"type": "branch", "name": "main"}}]},
}
DATA_CENTER = {
    "eventKey": "repo:refs_changed",
    "repository": {
        "slug": "repository",
        "id": 84,
        "scmId": "git",
        "project": {"key": "PROJ", "id": 84, "name": "project", "public": False, "type": "NORMAL"},
    },
    "changes": [
        {"refId": "refs/heads/master", "fromHash": NEVER, "toHash": AFTER, "type": "UPDATE"},
    ],
}


def _hex(body: bytes, secret: str = SECRET) -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _standard(body: bytes, key: bytes = SECRET.encode(), moment: int = NOW) -> dict[str, str]:
    made = base64.b64encode(hmac.new(key, f"id-1.{moment}.".encode() + body, hashlib.sha256).digest())
    signed = {"webhook-id": "id-1", "webhook-timestamp": str(moment)}
    return signed | {"webhook-signature": f"v1a,other v1,{made.decode()}"}


@pytest.mark.parametrize(
    ("payload", "headers", "wanted"),
    [
        (GITLAB, {"x-gitlab-event": "Push Hook"}, Pushed(("git:example.com/mike/diaspora",))),
        (GITLAB, {"x-gitlab-event": "Tag Push Hook"}, Pushed(("git:example.com/mike/diaspora",))),
        (
            GITEA,
            {"x-gitea-event": "push", "x-github-event": "push"},
            Pushed(("git:localhost:3000/gitea/webhooks",)),
        ),
        (GITEA, {"x-forgejo-event": "create"}, Pushed(("git:localhost:3000/gitea/webhooks",))),
        (BITBUCKET, {"x-event-key": "repo:push"}, Pushed(("git:bitbucket.org/team_name/repo_name",))),
        (DATA_CENTER, {"x-event-key": "repo:refs_changed"}, Pushed((), "/proj/repository")),
        (GITEA, {"x-gitea-event": "issues"}, None),
        ({"test": True}, {"x-event-key": "diagnostics:ping"}, None),
        (GITLAB, {"x-gitlab-event": "Merge Request Hook"}, None),
    ],
)
def test_each_server_names_its_repository(
    payload: dict[str, Any], headers: dict[str, str], wanted: Pushed | None
) -> None:
    found = forges.read(json.dumps(payload).encode(), headers)
    if wanted is None or found is None:
        assert found is wanted
        return
    assert found.tail == wanted.tail
    assert set(wanted.ids) <= set(found.ids)


def test_each_form_of_a_signature_holds_for_these_bytes_and_this_secret_alone() -> None:
    body = json.dumps(GITEA).encode()
    encoded = "whsec_" + base64.b64encode(b"sixteen bytes or").decode()
    for headers, secret in (
        ({"x-hub-signature-256": f"sha256={_hex(body)}"}, SECRET),
        ({"x-hub-signature": f"sha256={_hex(body)}"}, SECRET),
        ({"x-gitea-signature": _hex(body)}, SECRET),
        ({"x-forgejo-signature": _hex(body), "x-gitea-signature": _hex(body)}, SECRET),
        (_standard(body), SECRET),
        (_standard(body, b"sixteen bytes or"), encoded),
    ):
        forges.verify(["an older one", secret], body, headers, NOW)
        for wrong_secrets, wrong_body in (
            (["another"], body),
            ([], body),
            ([""], body),
            ([secret], body + b" "),
        ):
            with pytest.raises(NotTrusted):
                forges.verify(wrong_secrets, wrong_body, headers, NOW)
    forges.verify([SECRET], body, {"x-gitlab-token": SECRET}, NOW)
    for secrets, said in (([SECRET], "another"), ([SECRET], ""), ([""], ""), ([], "")):
        with pytest.raises(NotTrusted):
            forges.verify(secrets, body, {"x-gitlab-token": said}, NOW)
    with pytest.raises(NotTrusted, match="not signed in a way"):
        forges.verify([SECRET], body, {"x-gitea-event": "push"}, NOW)


@pytest.mark.parametrize("moment", [NOW - 301, NOW + 301])
def test_a_signature_of_another_time_is_refused(moment: int) -> None:
    with pytest.raises(NotTrusted, match="another time"):
        forges.verify([SECRET], b"{}", _standard(b"{}", moment=moment), NOW)


def test_a_signature_without_its_parts_is_refused() -> None:
    for missing in ("webhook-id", "webhook-timestamp"):
        headers = {name: value for name, value in _standard(b"{}").items() if name != missing}
        with pytest.raises(NotTrusted, match="lacks"):
            forges.verify([SECRET], b"{}", headers, NOW)
    with pytest.raises(NotTrusted):
        forges.verify([SECRET], b"{}", _standard(b"{}") | {"webhook-timestamp": "1e9"}, NOW)


KEYS = ["repository", "project", "links", "clone", "html", "href", "clone_url", "key", "slug"]


@given(
    st.sampled_from(["Push Hook", "push", "repo:push", "repo:refs_changed"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(KEYS), inner),
    ),
)
def test_whatever_comes_is_refused_in_words(event: str, payload: Any) -> None:
    with contextlib.suppress(TrainForgeError):
        forges.read(json.dumps(payload).encode(), {"x-event-key": event})
    with pytest.raises(WebhookInvalid):
        forges.read(b"payload=%7B%7D", {"x-event-key": event})
