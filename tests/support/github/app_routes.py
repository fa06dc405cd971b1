"""GitHub Apps: who they are, where they are installed, tokens for that, and their own hook."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime

from support.github.calls import Call, Refusal, invalid, route
from support.github.deliveries import listed
from support.github.description import example, overlaid
from support.github.repository_routes import Answer, delivery_of
from support.github.state import REPO, Installation, Json, Token, app_json, installation_json

LIFE_S = 3600


@route("GET", "/app", by="app")
def this_app(call: Call) -> Answer:
    assert call.app is not None
    made = app_json(call.app, call.github.api, call.github.site)
    return 200, made | {"installations_count": len(_own(call))}


def _own(call: Call) -> list[Installation]:
    assert call.app is not None
    return [one for one in call.github.installations.values() if one.app == call.app.id]


def _shown(call: Call, one: Installation) -> Json:
    return installation_json(one, call.github.apps[one.app], call.github.api, call.github.site)


@route("GET", "/app/installations", by="app")
def installations(call: Call) -> Answer:
    return 200, call.page([_shown(call, one) for one in _own(call)])


@route("GET", "/app/installations/{installation_id}", by="app")
def one_installation(call: Call) -> Answer:
    return 200, _shown(call, _installation(call))


def _installation(call: Call) -> Installation:
    found = [one for one in _own(call) if one.id == int(call.path["installation_id"])]
    if not found:
        raise Refusal(404, "Not Found")
    return found[0]


@route("GET", REPO + "/installation", by="app")
def repository_installation(call: Call) -> Answer:
    found = call.repository
    for one in _own(call):
        if one.account == found.owner and (one.repositories is None or found.id in one.repositories):
            return 200, _shown(call, one)
    raise Refusal(404, "Not Found")


@route("POST", "/app/installations/{installation_id}/access_tokens", by="app")
def new_token(call: Call) -> Answer:
    one = _installation(call)
    names, ids = call.body.get("repositories"), call.body.get("repository_ids")
    chosen = one.repositories
    if names is not None or ids is not None:
        asked = {call.github.repository(f"{one.account}/{name}") for name in names or ()}
        chosen = {found.id for found in asked if found is not None} | set(ids or ())
        outside = one.repositories is not None and not chosen <= one.repositories
        if None in asked or outside:
            raise Refusal(422, "There is at least one repository that does not exist or is not accessible")
    wanted = call.body.get("permissions") or one.permissions
    ranks = {"": 0, "read": 1, "write": 2, "admin": 3}
    for name, level in wanted.items():
        has = "read" if name == "metadata" else one.permissions.get(name, "")
        if ranks[level] > ranks[has]:
            raise Refusal(422, "The permissions requested are not granted to this installation.")
    expires = time.time() + LIFE_S
    app = call.github.apps[one.app]
    token = Token(f"{app.slug}[bot]", dict(wanted), chosen, app.id, one.id, expires=expires)
    text = "ghs_" + secrets.token_hex(18)
    call.github.tokens[text] = token
    until = datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    selection = "all" if chosen is None else "selected"
    answer = {"token": text, "expires_at": until, "permissions": wanted, "repository_selection": selection}
    return 201, answer


@route("DELETE", "/installation/token")
def revoke(call: Call) -> Answer:
    if call.token is None or call.token.app is None:
        raise Refusal(403, "Resource not accessible by personal access token")
    call.token.revoked = True
    return 204, None


@route("GET", "/installation/repositories", ("metadata", "read"))
def repositories(call: Call) -> Answer:
    assert call.token is not None
    one = call.github.installations[call.token.installation or 0]
    found = [
        repository.as_json()
        for repository in call.github.repositories.values()
        if repository.owner == one.account and (one.repositories is None or repository.id in one.repositories)
    ]
    return 200, {"total_count": len(found), "repositories": call.page(found)}


@route("POST", "/app-manifests/{code}/conversions", by="nobody")
def convert(call: Call) -> Answer:
    """The last step of making an App from a manifest: the code is good once, for an hour."""
    app = call.github.codes.pop(call.path["code"], None)
    if app is None:
        raise Refusal(404, "Not Found")
    made = example("POST", "/app-manifests/{code}/conversions", call.github.api, "201")
    own = app_json(app, call.github.api, call.github.site)
    keys = {"pem": app.private_key, "webhook_secret": app.hook.secret, "client_secret": secrets.token_hex(20)}
    return 201, overlaid(made, **{key: own[key] for key in made if key in own}, **keys)


# --- an App's own hook ----------------------------------------------------------------------------------


@route("GET", "/app/hook/config", by="app")
def hook_config(call: Call) -> Answer:
    assert call.app is not None
    return 200, _config(call)


def _config(call: Call) -> Json:
    assert call.app is not None
    hook = call.app.hook
    return {"url": hook.url, "content_type": "json", "insecure_ssl": "0", "secret": "********"}


@route("PATCH", "/app/hook/config", by="app")
def change_hook_config(call: Call) -> Answer:
    assert call.app is not None
    hook = call.app.hook
    if not str(call.body.get("url", hook.url)).startswith(("http://", "https://")):
        raise invalid("Hook", "url", "url is missing a scheme")
    hook.url = call.body.get("url", hook.url)
    hook.secret = call.body.get("secret", hook.secret)
    return 200, _config(call)


@route("GET", "/app/hook/deliveries", by="app")
def deliveries(call: Call) -> Answer:
    assert call.app is not None
    return 200, call.cursor_page([listed(one) for one in call.app.hook.deliveries])


@route("GET", "/app/hook/deliveries/{delivery_id}", by="app")
def one_delivery(call: Call) -> Answer:
    assert call.app is not None
    return 200, delivery_of(call, call.app.hook)


@route("POST", "/app/hook/deliveries/{delivery_id}/attempts", by="app")
def redeliver(call: Call) -> Answer:
    assert call.app is not None
    delivery = delivery_of(call, call.app.hook)
    call.github.later(call.github.redeliver, delivery["repository_id"], call.app.hook, delivery)
    return 202, {}
