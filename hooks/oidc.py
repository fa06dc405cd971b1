"""Tokens by which GitHub says which workflow run somebody is (OpenID Connect).

https://docs.github.com/en/actions/reference/security/oidc has their claims. The issuer's public keys are
fetched when one is needed that is not known, from the issuer itself, bounded in size, time and number.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2
from joserfc import jwk, jws
from joserfc.errors import JoseError
from joserfc.jwk import GuestProtocol

from trainforge.config.errors import NotTrusted, Unreachable
from trainforge.config.strict_json import read_json

ALGORITHMS = ("RS256", "ES256")  # GitHub's is RS256; others may stand in its place
MAX_TOKEN_BYTES = 16 * 1024
MAX_ANSWER_BYTES = 256 * 1024
MAX_KEYS = 50
MAX_KID = 256
TIMEOUT_S = 5.0
KEEP_S = 3600.0
AGAIN_S = 30.0  # unknown key ids, or an issuer that is away, cost no more than one look in this time
MAX_LIFE_S = 3600
LEEWAY_S = 60
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class WorkflowRun:
    """What a token of GitHub Actions says of the run that holds it."""

    jti: str
    expires: float
    repository: str
    repository_id: int
    ref: str
    commit: str
    event: str
    run_id: str
    run_attempt: str
    actor: str
    head_ref: str = ""


class Issuer:
    """One issuer and its keys; safe to use from several threads."""

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.url = url.rstrip("/")
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: dict[str, Any] = {}
        self._problem = ""  # why they were not to be had when last asked for
        self._fetched = self._tried = -KEEP_S

    def verify(self, token: str, audience: str, now: float) -> WorkflowRun:
        """The run that a token is of; whether it was used before is the caller's to know.

        Raises:
            NotTrusted: not a token of this issuer for this audience now. Unreachable: its keys are not to
                be had.
        """
        if len(token) > MAX_TOKEN_BYTES or not token.isascii() or token.count(".") != 2:
            raise NotTrusted("this is not a token of a workflow run")
        try:
            signed = jws.deserialize_compact(token, self._key, algorithms=list(ALGORITHMS))
        except (JoseError, ValueError, RecursionError) as error:
            raise NotTrusted("the signature of the workflow run's token does not hold") from error
        claims = read_json(signed.payload)
        if not isinstance(claims, dict):
            raise NotTrusted("the token of the workflow run has no claims")
        self._check(claims, audience, now)
        return _run(claims)

    def _check(self, claims: dict[str, Any], audience: str, now: float) -> None:
        if claims.get("iss") != self.url:
            raise NotTrusted(
                "the workflow run's token is another issuer's",
                hint="for GitHub Enterprise Server set oidc_issuer in sender.yaml",
            )
        if claims.get("aud") != audience:
            raise NotTrusted(
                "the workflow run's token is for another audience",
                hint=f"this sender is {audience} (public_url in sender.yaml); use that as sender-url",
            )
        issued, expires = claims.get("iat"), claims.get("exp")
        if type(issued) is not int or type(expires) is not int or not 0 < expires - issued <= MAX_LIFE_S:
            raise NotTrusted("the workflow run's token does not say for how long it is good")
        begins = claims.get("nbf", issued)
        if type(begins) is not int or max(begins, issued) > now + LEEWAY_S or expires < now - LEEWAY_S:
            raise NotTrusted("the workflow run's token has expired, or is from the future")

    def _key(self, signed: GuestProtocol) -> Any:
        kid = signed.headers().get("kid")
        if not isinstance(kid, str) or len(kid) > MAX_KID:
            raise NotTrusted("the workflow run's token does not say which key it is signed with")
        with self._lock:
            now = self._clock()
            old = kid not in self._keys or now - self._fetched >= KEEP_S
            if old and now - self._tried >= AGAIN_S:
                self._tried = now
                try:
                    self._keys, self._problem = self._fetch(), ""
                    self._fetched = now
                except Unreachable as error:
                    self._problem = error.message
            found = self._keys.get(kid)
            if found is None and self._problem:
                raise Unreachable(self._problem, hint="the sender has to reach its issuer over https")
        if found is None:
            raise NotTrusted("the workflow run's token is signed with a key that its issuer does not have")
        return found

    def _fetch(self) -> dict[str, Any]:
        about = self._get(f"{self.url}/.well-known/openid-configuration")
        where = str(about.get("jwks_uri", ""))
        if _origin(where) != _origin(self.url):
            raise Unreachable(f"{self.url} names keys at another place, {where[:200]!a}")
        found = self._get(where).get("keys")
        keys: dict[str, Any] = {}
        for one in found[:MAX_KEYS] if isinstance(found, list) else []:
            if isinstance(one, dict) and isinstance(one.get("kid"), str) and one.get("kty") in ("RSA", "EC"):
                try:
                    keys[one["kid"]] = jwk.import_key(one)
                except (JoseError, ValueError):
                    continue
        return keys

    def _get(self, url: str) -> dict[str, Any]:
        """Raises Unreachable: no answer in time, too large a one, or not JSON."""
        near = urlsplit(url).hostname in LOOPBACK
        if urlsplit(url).scheme != "https" and not near:
            raise Unreachable(f"{url[:200]!a} is not https", hint="set oidc_issuer to an https address")
        body = bytearray()
        deadline = time.monotonic() + TIMEOUT_S
        try:
            with httpx2.stream(
                "GET", url, timeout=TIMEOUT_S, follow_redirects=False, trust_env=not near
            ) as answer:
                answer.raise_for_status()
                for chunk in answer.iter_bytes():
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES or time.monotonic() > deadline:
                        raise Unreachable(f"{url} answers too much, or too slowly")
            said = json.loads(bytes(body))
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, RecursionError) as error:
            raise Unreachable(
                f"the keys of {self.url} cannot be fetched: {error}",
                hint="the sender has to reach it over https",
            ) from error
        if not isinstance(said, dict):
            raise Unreachable(f"{url} does not answer with a JSON object")
        return said


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def _run(claims: dict[str, Any]) -> WorkflowRun:
    """Raises NotTrusted: a claim that every token of GitHub Actions has is missing."""

    def text(name: str, limit: int = 512) -> str:
        value = claims.get(name)
        if not isinstance(value, str) or not value or len(value) > limit:
            raise NotTrusted(f"the workflow run's token does not say {name}")
        return value

    number = text("repository_id", 20)
    if not (number.isascii() and number.isdigit()):
        raise NotTrusted("the workflow run's token does not say repository_id")
    head = claims.get("head_ref", "")
    return WorkflowRun(
        jti=text("jti", 128),
        expires=float(claims["exp"]),
        repository=text("repository"),
        repository_id=int(number),
        ref=text("ref", 1024),
        commit=text("sha", 64),
        event=text("event_name", 64),
        run_id=text("run_id", 32),
        run_attempt=text("run_attempt", 16),
        actor=text("actor", 128),
        head_ref=head if isinstance(head, str) and len(head) <= 1024 else "",
    )
