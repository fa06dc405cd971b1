"""Signing and checking: Ed25519 compact JWS in a strict profile.

What is accepted is far narrower than RFC 7515: one algorithm (`Ed25519`, RFC 9864), a fixed header, one
audience, whole seconds, a life of at most five minutes, no duplicate JSON keys. Replays are the caller's
to refuse: the returned `jti` and the order's id and fencing token are what to remember.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey
from pydantic import ValidationError

from trainforge.config.errors import ClockSkew, MessageInvalid, NotTrusted, SettingsError
from trainforge.config.messages import Order
from trainforge.config.strict_json import read_json

ALGORITHM = "Ed25519"
ORDER_TYPE = "tf-order+jwt"
PROOF_TYPE = "tf-proof+jwt"
KEY_TYPE = "tf-key+jwt"
SECRETS_TYPE = "tf-secrets+jwt"
WORKFLOW_TYPE = "tf-workflow+jwt"
MAX_TOKEN_BYTES = 64 * 1024
MAX_LIFE_S = 300
LEEWAY_S = 60
MAX_TIME = 2**40  # unix seconds


class SigningKey:
    """A private Ed25519 key. `id` is its RFC 7638 thumbprint; `public` its public JWK."""

    def __init__(self, key: OKPKey) -> None:
        self._key = key
        self.public: dict[str, str] = public_jwk(key.as_dict(private=False))
        self.id = thumbprint(self.public)

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(OKPKey.generate_key("Ed25519", private=True))

    @classmethod
    def load_or_create(cls, path: Path) -> SigningKey:
        """Read the key file, or make it, readable by its owner alone.

        Raises:
            SettingsError: the file is not a private Ed25519 JWK.
        """
        try:
            key = OKPKey.import_key(json.loads(path.read_text()))
            if key.is_private and key.as_dict(private=False).get("crv") == "Ed25519":
                return cls(key)
            why = "it is of another kind, or its private part is missing"
        except FileNotFoundError:
            return cls._create(path)
        except (ValueError, JoseError, KeyError) as error:
            why = str(error)
        raise SettingsError(
            f"{path} is not a private Ed25519 key ({why})",
            hint="restore it, or move it away to make a new identity",
        )

    @classmethod
    def parse(cls, text: str, where: str) -> SigningKey:
        """The private key that `save` writes.

        Raises:
            SettingsError: it is not one; `where` says what was read.
        """
        try:
            key = OKPKey.import_key(json.loads(text))
            if key.is_private and key.as_dict(private=False).get("crv") == "Ed25519":
                return cls(key)
        except (ValueError, JoseError, KeyError, TypeError):
            pass
        raise SettingsError(
            f"{where} is not a private Ed25519 key", hint="`trainforge direct --new-key FILE` makes one"
        )

    @classmethod
    def _create(cls, path: Path) -> SigningKey:
        key = cls.generate()
        key.save(path)
        return key

    def save(self, path: Path) -> None:
        """Write the private key, readable by its owner alone; the file is whole or the one before."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{secrets.token_hex(4)}")
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(self._key.as_dict(private=True), file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)

    def sign(self, typ: str, claims: dict[str, Any]) -> str:
        header = {"alg": ALGORITHM, "typ": typ, "kid": self.id}
        payload = json.dumps(claims, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return jws.serialize_compact(header, payload.encode(), self._key, algorithms=[ALGORITHM])


def public_jwk(data: Mapping[str, Any]) -> dict[str, str]:
    """The three members of a public Ed25519 JWK, checked; anything else in it is refused.

    Raises:
        NotTrusted: not a public Ed25519 key.
    """
    if set(data) != {"kty", "crv", "x"} or data["kty"] != "OKP" or data["crv"] != "Ed25519":
        raise NotTrusted("this is not a public Ed25519 key")
    return {"kty": "OKP", "crv": "Ed25519", "x": str(data["x"])}


def thumbprint(jwk: Mapping[str, str]) -> str:
    """RFC 7638 SHA-256 thumbprint of a public OKP key, base64url without padding."""
    canonical = json.dumps({k: jwk[k] for k in ("crv", "kty", "x")}, separators=(",", ":"), sort_keys=True)
    return _base64url(hashlib.sha256(canonical.encode()).digest())


def executor_id(jwk: Mapping[str, str]) -> str:
    """An executor is its key: `x` and 80 bits of the thumbprint in base32."""
    digest = hashlib.sha256(thumbprint(jwk).encode()).digest()
    return "x" + base64.b32encode(digest[:10]).decode().lower()


@dataclass(frozen=True)
class Claims:
    """The checked claims of a token, `payload` with everything it said."""

    jti: str
    issued: int
    payload: dict[str, Any]


def verify(
    token: str,
    *,
    typ: str,
    keys: Mapping[str, Mapping[str, str]],
    issuer: str,
    audience: str,
    now: float | None,
) -> Claims:
    """Check a token of ours. `keys` maps key ids to public JWKs of `issuer`; `now` is unix seconds.

    Without `now` no clock is asked: the caller knows by a challenge that the token is fresh.

    Raises:
        ClockSkew: it holds but for its time. NotTrusted: for any other deviation; the message names it
            without repeating the token.
    """
    if len(token) > MAX_TOKEN_BYTES or not token.isascii():
        raise NotTrusted("the signed message is too large or not ASCII")
    if token.count(".") != 2:
        raise NotTrusted("the signed message does not have three parts")
    header = _strict_json(token.split(".", 1)[0])
    if set(header) != {"alg", "typ", "kid"} or header["alg"] != ALGORITHM or header["typ"] != typ:
        raise NotTrusted(f"the signed message is not a {typ} signed with {ALGORITHM}")
    _canonical(token.rsplit(".", 1)[1])
    key = keys.get(str(header["kid"]))
    if key is None:
        raise NotTrusted("signed by a key that is not known here", hint="join again if keys were changed")
    try:
        public = OKPKey.import_key(dict(public_jwk(key)))
        jws.deserialize_compact(token, public, algorithms=[ALGORITHM])
    except (JoseError, ValueError) as error:
        raise NotTrusted("the signature does not hold") from error
    return _check_claims(_strict_json(token.split(".")[1]), issuer, audience, now)


def _check_claims(payload: dict[str, Any], issuer: str, audience: str, now: float | None) -> Claims:
    issued, expires, jti = payload.get("iat"), payload.get("exp"), payload.get("jti")
    if type(issued) is not int or type(expires) is not int or not isinstance(jti, str) or not jti:
        raise NotTrusted("the signed message lacks iat, exp or jti")
    if max(abs(issued), abs(expires)) > MAX_TIME:
        raise NotTrusted("the signed message is from no time that there is")
    if payload.get("iss") != issuer or payload.get("aud") != audience:
        raise NotTrusted("the signed message is from, or for, somebody else")
    if not 0 < expires - issued <= MAX_LIFE_S:
        raise NotTrusted("the signed message lives too long")
    if now is not None and issued > now + LEEWAY_S:
        raise ClockSkew(f"the signed message is from {issued - now:.0f} s in the future", now - issued)
    if now is not None and now > expires + LEEWAY_S:
        raise ClockSkew(f"the signed message expired {now - expires:.0f} s ago", now - issued)
    return Claims(jti, issued, payload)


def sign_order(
    key: SigningKey, *, sender: str, executor: str, order: Order, now: float, challenge: str = ""
) -> str:
    claims = {
        "iss": sender,
        "aud": executor,
        "sub": order.node.job,
        "jti": order.id,
        "iat": int(now),
        "exp": int(now) + MAX_LIFE_S,
        "challenge": challenge,
        "order": order.model_dump(mode="json"),
    }
    return key.sign(ORDER_TYPE, claims)


def verify_order(
    token: str,
    *,
    sender: str,
    keys: Mapping[str, Mapping[str, str]],
    executor: str,
    now: float,
    challenge: str = "",
) -> Order:
    """The order in a signed instruction for this executor; one that answers a challenge needs no clock.

    Raises:
        NotTrusted: not signed by the paired sender for this executor, not fresh, or not well-formed.
    """
    clock = None if challenge else now
    claims = verify(token, typ=ORDER_TYPE, keys=keys, issuer=sender, audience=executor, now=clock)
    said = str(claims.payload.get("challenge", ""))
    if not hmac.compare_digest(said.encode(), challenge.encode()):
        raise NotTrusted("the order does not answer this claim's challenge")
    try:
        order = Order.model_validate(claims.payload.get("order"))
    except ValidationError as error:
        raise NotTrusted(f"the signed order is not well-formed: {error.errors()[0]['msg']}") from error
    if order.id != claims.jti or order.node.job != claims.payload.get("sub"):
        raise NotTrusted("the order's identity differs from its envelope")
    return order


def sign_request(
    key: SigningKey,
    *,
    subject: str,
    audience: str,
    method: str,
    path: str,
    body: bytes,
    now: float,
    nonce: str = "",
) -> str:
    """The value of `Authorization` that proves who makes a request, and that it is this one.

    `path` includes the query. The form follows DPoP (RFC 9449), with the body bound as well; `nonce` is
    what the other side gave out because the clocks differ.
    """
    claims = {
        "iss": subject,
        "aud": audience,
        "jti": secrets.token_urlsafe(16),
        "iat": int(now),
        "exp": int(now) + LEEWAY_S,
        "htm": method,
        "htu": path,
        "body_sha256": hashlib.sha256(body).hexdigest(),
        **({"nonce": nonce} if nonce else {}),
    }
    return f"TF-Proof {key.sign(PROOF_TYPE, claims)}"


def proof_issuer(authorization: str) -> str:
    """Who a proof claims to be from, unchecked: only to look the key up.

    Raises:
        NotTrusted: no proof in the header.
    """
    scheme, _, token = authorization.partition(" ")
    if scheme != "TF-Proof" or token.count(".") != 2 or len(token) > MAX_TOKEN_BYTES:
        raise NotTrusted("the request carries no TF-Proof", hint="join this sender first")
    return str(_strict_json(token.split(".")[1]).get("iss", ""))


def verify_request(
    authorization: str,
    *,
    subject: str,
    keys: Mapping[str, Mapping[str, str]],
    audience: str,
    method: str,
    path: str,
    body: bytes,
    now: float | None,
    fresh: Callable[[str], bool] = lambda nonce: False,
) -> Claims:
    """Check that `subject` made exactly this request.

    A nonce that is `fresh` stands in for the clock; so does no `now`, where what was signed is a challenge.

    Raises:
        NotTrusted: otherwise.
    """
    proof_issuer(authorization)
    token = authorization.partition(" ")[2]
    nonce = _strict_json(token.split(".")[1]).get("nonce")
    clock = None if isinstance(nonce, str) and fresh(nonce) else now
    claims = verify(token, typ=PROOF_TYPE, keys=keys, issuer=subject, audience=audience, now=clock)
    expected = {"htm": method, "htu": path, "body_sha256": hashlib.sha256(body).hexdigest()}
    if any(claims.payload.get(name) != value for name, value in expected.items()):
        raise NotTrusted("the proof is for another request")
    return claims


# --- the sender's next key ----------------------------------------------------------------------------


def sign_introduction(
    key: SigningKey, *, sender: str, executor: str, next_key: Mapping[str, str], until: float, now: float
) -> str:
    """By the key that an executor knows: the sender's next one, and until when both are good."""
    claims = {
        "iss": sender,
        "aud": executor,
        "jti": secrets.token_urlsafe(16),
        "iat": int(now),
        "exp": int(now) + MAX_LIFE_S,
        "key": dict(next_key),
        "until": int(until),
    }
    return key.sign(KEY_TYPE, claims)


def verify_introduction(
    token: str, *, sender: str, executor: str, known: Mapping[str, str]
) -> tuple[dict[str, str], float]:
    """The sender's next key, and for how many seconds the one `known` is still good.

    Only the newest key that is known may introduce another, so that none is ever introduced again.

    Raises:
        NotTrusted: it is not from that key.
    """
    keys = {thumbprint(known): known}
    claims = verify(token, typ=KEY_TYPE, keys=keys, issuer=sender, audience=executor, now=None)
    key, until = claims.payload.get("key"), claims.payload.get("until")
    if not isinstance(key, dict) or type(until) is not int:
        raise NotTrusted("the introduction of a key is not well-formed")
    return public_jwk(key), max(0.0, until - claims.issued)


# --- keys as people pass them on ----------------------------------------------------------------------


def public_text(jwk: Mapping[str, str]) -> str:
    """A public key on one line."""
    return f"tfk_{jwk['x']}"


def parse_public_text(text: str) -> dict[str, str]:
    """Raises NotTrusted when it is not a public key."""
    kind, _, x = text.strip().partition("_")
    if kind != "tfk" or len(x) != 43 or len(_canonical(x)) != 32:
        raise NotTrusted("this is not a sender's public key", hint="it begins with tfk_")
    return {"kty": "OKP", "crv": "Ed25519", "x": x}


# --- one-time join tokens -----------------------------------------------------------------------------


@dataclass(frozen=True)
class JoinToken:
    """`tfj_<secret>_<fingerprint of the sender's key>`: the sender stores `digest` alone."""

    text: str
    digest: str
    sender_key_id: str


def new_join_token(sender_key_id: str) -> JoinToken:
    return parse_join_token(f"tfj_{secrets.token_hex(32)}_{sender_key_id}")


def parse_join_token(text: str) -> JoinToken:
    """Raises NotTrusted when it does not look like a join token."""
    parts = text.strip().split("_", 2)
    if len(parts) != 3 or parts[0] != "tfj" or len(parts[1]) != 64 or len(parts[2]) != 43:
        raise NotTrusted("this is not a join token", hint="`trainforge sender token` prints a new one")
    return JoinToken(text.strip(), digest_secret(parts[1]), parts[2])


def digest_secret(secret: str) -> str:
    """How bearer secrets are stored: SHA-256, which suffices for secrets of full entropy."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _canonical(segment: str) -> bytes:
    """What a segment encodes; another spelling of the same bytes is refused."""
    try:
        raw = base64.b64decode(segment + "=" * (-len(segment) % 4), altchars=b"-_", validate=True)
    except ValueError as error:  # not ASCII, or not base64
        raise NotTrusted("the signed message is not in base64url") from error
    if _base64url(raw) != segment:
        raise NotTrusted("the signed message is not in canonical base64url")
    return raw


def _strict_json(segment: str) -> dict[str, Any]:
    try:
        value = read_json(_canonical(segment))
    except MessageInvalid as error:
        raise NotTrusted(f"the signed message cannot be read: {error.message}") from error
    if not isinstance(value, dict):
        raise NotTrusted("the signed message is not a JSON object")
    return value
