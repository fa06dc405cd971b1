"""Signed messages: what holds is accepted, and nothing else, however it was made."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import stat
import string
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import assume, given
from hypothesis import strategies as st

from trainforge.config.errors import ClockSkew, NotTrusted, SettingsError
from trainforge.config.messages import FencingToken, NodeKey, Order, RunOrder, StopOrder
from trainforge.config.messages import Repository as WireRepository
from trainforge.config.trust import (
    MAX_TOKEN_BYTES,
    ORDER_TYPE,
    PROOF_TYPE,
    SigningKey,
    digest_secret,
    executor_id,
    new_join_token,
    parse_join_token,
    proof_issuer,
    public_jwk,
    sign_order,
    sign_request,
    thumbprint,
    verify_order,
    verify_request,
)

NOW = 1_800_000_000
SENDER = SigningKey.generate()
EXECUTOR = SigningKey.generate()
STRANGER = SigningKey.generate()
ME = executor_id(EXECUTOR.public)
JOB = "a" * 26
ORDER = Order(
    id=f"{JOB}.1.0.stop",
    node=NodeKey(job=JOB, attempt=1, rank=0),
    token=FencingToken(incarnation=1, number=2),
    body=StopOrder(code="stopped", reason="somebody “asked”"),
)
TOKEN = sign_order(SENDER, sender=SENDER.id, executor=ME, order=ORDER, now=NOW, challenge="c" * 22)


def check(
    token: str, *, now: float = NOW, challenge: str = "c" * 22, executor: str = ME, sender: str = SENDER.id
) -> Order:
    keys = {SENDER.id: SENDER.public}
    return verify_order(token, sender=sender, keys=keys, executor=executor, now=now, challenge=challenge)


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(segment: str) -> Any:
    return json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))


def raw_key(key: SigningKey) -> Ed25519PrivateKey:
    secret = str(key._key.as_dict(private=True)["d"])
    return Ed25519PrivateKey.from_private_bytes(base64.urlsafe_b64decode(secret + "="))


def signed(header: dict[str, Any] | bytes, payload: dict[str, Any] | bytes, key: SigningKey = SENDER) -> str:
    """A token whose signature holds, whatever it says."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    signing_input = ".".join(map(encode, parts))
    return f"{signing_input}.{encode(raw_key(key).sign(signing_input.encode()))}"


HEADER: dict[str, Any] = decode(TOKEN.split(".")[0])
PAYLOAD: dict[str, Any] = decode(TOKEN.split(".")[1])
INNER: dict[str, Any] = PAYLOAD["order"]


def without(claims: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in claims.items() if key != name}


# --- what holds ---------------------------------------------------------------------------------------


def test_an_order_comes_through_unchanged() -> None:
    assert check(TOKEN) == ORDER
    assert check(signed(HEADER, PAYLOAD)) == ORDER


def test_a_whole_run_order_comes_through_unchanged() -> None:
    body = RunOrder(
        repository=WireRepository(id="builtin:p", name="p", url="http://127.0.0.1/git/p.git"),
        ref="refs/heads/main",
        commit="a" * 40,
        manifest_path="trainforge.yaml",
        manifest_blob="b" * 40,
        project="p",
        nodes=2,
        processes_per_node=1,
        params={"lr": 1e-4, "name": "é", "none": None},
        results_branch="r",
        lease_ttl=90,
    )
    order = ORDER.model_copy(update={"body": body})
    token = sign_order(SENDER, sender=SENDER.id, executor=ME, order=order, now=NOW + 0.9)
    assert check(token, challenge="", now=NOW + 1.2) == order


@pytest.mark.parametrize(
    ("offset", "holds"), [(-61, False), (-60, True), (0, True), (360, True), (361, False)]
)
def test_an_order_holds_from_a_minute_before_to_a_minute_after_its_time(offset: int, holds: bool) -> None:
    token = sign_order(SENDER, sender=SENDER.id, executor=ME, order=ORDER, now=NOW)
    if holds:
        assert check(token, challenge="", now=NOW + offset) == ORDER
    else:
        with pytest.raises(ClockSkew, match=r"future|expired") as caught:
            check(token, challenge="", now=NOW + offset)
        assert caught.value.code == "clock_skew"
        assert abs(caught.value.seconds) == abs(offset)
        assert str(abs(offset) % 300) in str(caught.value)


@pytest.mark.parametrize("offset", [-7200, 7200])
def test_an_order_that_answers_a_challenge_needs_no_clock(offset: int) -> None:
    assert check(TOKEN, now=NOW + offset) == ORDER


def test_the_key_id_is_the_thumbprint_of_rfc_8037() -> None:
    """The example of RFC 8037, appendix A.3."""
    key = {"crv": "Ed25519", "kty": "OKP", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    assert thumbprint(key) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


# --- what does not ------------------------------------------------------------------------------------


def hmac_token(secret: bytes) -> str:
    signing_input = f"{encode(json.dumps({**HEADER, 'alg': 'HS256'}).encode())}.{TOKEN.split('.')[1]}"
    return f"{signing_input}.{encode(hmac.digest(secret, signing_input.encode(), hashlib.sha256))}"


def repeated(claims: dict[str, Any], key: str, value: Any) -> bytes:
    text = json.dumps(claims)
    return f"{text[:-1]}, {json.dumps(key)}: {json.dumps(value)}}}".encode()


PEM = raw_key(SENDER).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
RAW = raw_key(SENDER).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
TWICE = json.dumps(PAYLOAD).replace('"kind": "stop"', '"kind": "stop", "kind": "stop"')
PARTS = dict(zip(("protected", "payload", "signature"), TOKEN.split("."), strict=True))
FORGERIES: dict[str, str] = {
    "alg none": f"{encode(json.dumps({**HEADER, 'alg': 'none'}).encode())}.{TOKEN.split('.')[1]}.",
    "alg none, signed": signed({**HEADER, "alg": "none"}, PAYLOAD),
    "alg EdDSA": signed({**HEADER, "alg": "EdDSA"}, PAYLOAD),
    "HS256 with the raw public key": hmac_token(RAW),
    "HS256 with the PEM public key": hmac_token(PEM),
    "HS256 with the JWK": hmac_token(SENDER.public["x"].encode()),
    "stranger's key": signed(HEADER, PAYLOAD, STRANGER),
    "stranger's key and kid": signed({**HEADER, "kid": STRANGER.id}, PAYLOAD, STRANGER),
    "kid of no text": signed({**HEADER, "kid": [SENDER.id]}, PAYLOAD),
    "no kid": signed(without(HEADER, "kid"), PAYLOAD),
    "jwk header": signed({**HEADER, "jwk": STRANGER.public}, PAYLOAD, STRANGER),
    "jwk header, own key": signed({**HEADER, "jwk": SENDER.public}, PAYLOAD),
    "jku header": signed({**HEADER, "jku": "https://evil.example/keys"}, PAYLOAD),
    "x5u header": signed({**HEADER, "x5u": "https://evil.example/keys"}, PAYLOAD),
    "unknown crit": signed({**HEADER, "crit": ["exp"]}, PAYLOAD),
    "b64 false": signed({**HEADER, "b64": False, "crit": ["b64"]}, PAYLOAD),
    "other type": signed({**HEADER, "typ": "JWT"}, PAYLOAD),
    "a proof": signed({**HEADER, "typ": PROOF_TYPE}, PAYLOAD),
    "repeated header": signed(repeated(HEADER, "alg", "Ed25519"), PAYLOAD),
    "header is a list": signed(b"[]", PAYLOAD),
    "aud list": signed(HEADER, {**PAYLOAD, "aud": [ME]}),
    "other aud": signed(HEADER, {**PAYLOAD, "aud": executor_id(STRANGER.public)}),
    "no aud": signed(HEADER, without(PAYLOAD, "aud")),
    "other iss": signed(HEADER, {**PAYLOAD, "iss": STRANGER.id}),
    "no iss": signed(HEADER, without(PAYLOAD, "iss")),
    "exp 1e30": signed(HEADER, {**PAYLOAD, "exp": 1e30}),
    "exp text": signed(HEADER, {**PAYLOAD, "exp": str(NOW + 300)}),
    "exp float": signed(HEADER, {**PAYLOAD, "exp": NOW + 300.0}),
    "exp true": signed(HEADER, {**PAYLOAD, "exp": True}),
    "exp before iat": signed(HEADER, {**PAYLOAD, "exp": NOW - 1}),
    "exp at iat": signed(HEADER, {**PAYLOAD, "exp": NOW}),
    "too long a life": signed(HEADER, {**PAYLOAD, "exp": NOW + 301}),
    "no exp": signed(HEADER, without(PAYLOAD, "exp")),
    "no iat": signed(HEADER, without(PAYLOAD, "iat")),
    "iat null": signed(HEADER, {**PAYLOAD, "iat": None}),
    "no jti": signed(HEADER, without(PAYLOAD, "jti")),
    "empty jti": signed(HEADER, {**PAYLOAD, "jti": ""}),
    "jti number": signed(HEADER, {**PAYLOAD, "jti": 1}),
    "other jti": signed(HEADER, {**PAYLOAD, "jti": "another"}),
    "other sub": signed(HEADER, {**PAYLOAD, "sub": "b" * 26}),
    "other challenge": signed(HEADER, {**PAYLOAD, "challenge": "d" * 22}),
    "no challenge": signed(HEADER, without(PAYLOAD, "challenge")),
    "challenge not ASCII": signed(HEADER, {**PAYLOAD, "challenge": "ü" * 22}),
    "repeated claim": signed(HEADER, repeated(PAYLOAD, "aud", ME)),
    "repeated inner key": signed(HEADER, TWICE.encode()),
    "NaN": signed(HEADER, repeated(PAYLOAD, "x", float("nan"))),
    "Infinity": signed(HEADER, repeated(PAYLOAD, "exp", float("inf"))),
    "payload is a list": signed(HEADER, b"[1]"),
    "payload is not JSON": signed(HEADER, b"hello"),
    "payload is not UTF-8": signed(HEADER, b'{"a": "\xff"}'),
    "payload is deep": signed(HEADER, b"[" * 20_000),
    "payload is a huge number": signed(HEADER, b'{"iat": ' + b"9" * 5000 + b"}"),
    "no order": signed(HEADER, without(PAYLOAD, "order")),
    "order with more": signed(HEADER, {**PAYLOAD, "order": {**INNER, "run_as": "root"}}),
    "order of unknown kind": signed(HEADER, {**PAYLOAD, "order": {**INNER, "body": {"kind": "exec"}}}),
    "padding": ".".join(part + "=" for part in TOKEN.split(".")),
    "line end": TOKEN + "\n",
    "space before": " " + TOKEN,
    "four parts": TOKEN + ".x",
    "two parts": TOKEN.rpartition(".")[0],
    "JSON serialisation": json.dumps(PARTS),
    "empty": "",
    "dots": "..",
    "not ASCII": TOKEN.replace("e", "е", 1),  # noqa: RUF001 - a Cyrillic letter
    "too large": signed(HEADER, {**PAYLOAD, "x": "x" * MAX_TOKEN_BYTES}),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_refused(name: str) -> None:
    with pytest.raises(NotTrusted) as caught:
        check(FORGERIES[name])
    assert TOKEN.split(".")[1][:40] not in str(caught.value)


def test_an_order_for_another_or_from_another_or_for_another_claim_is_refused() -> None:
    for wrong in (
        {"executor": "x" + "b" * 16},
        {"sender": STRANGER.id},
        {"challenge": ""},
        {"challenge": "C" * 22},
    ):
        with pytest.raises(NotTrusted):
            check(TOKEN, **wrong)


def test_a_claim_of_astronomic_time_is_refused() -> None:
    huge = 10**400
    for payload in ({"iat": huge, "exp": huge + 1}, {"iat": -huge, "exp": 1 - huge}):
        with pytest.raises(NotTrusted):
            check(signed(HEADER, {**PAYLOAD, **payload}))


@given(st.integers(0, len(TOKEN) - 1), st.sampled_from(string.printable))
def test_one_changed_character_is_never_believed(at: int, character: str) -> None:
    assume(character != TOKEN[at])
    mutated = TOKEN[:at] + character + TOKEN[at + 1 :]
    with pytest.raises(NotTrusted):
        check(mutated)


@given(st.integers(0, len(TOKEN)), st.integers(0, len(TOKEN)), st.text(string.printable, max_size=5))
def test_cut_and_stuffed_tokens_are_refused(start: int, end: int, inserted: str) -> None:
    mutated = TOKEN[: min(start, end)] + inserted + TOKEN[max(start, end) :]
    assume(mutated != TOKEN)
    with pytest.raises(NotTrusted):
        check(mutated)


@given(st.text(max_size=200) | st.tuples(*[st.binary(max_size=60).map(encode)] * 3).map(".".join))
def test_arbitrary_text_is_refused(text: str) -> None:
    with pytest.raises(NotTrusted):
        check(text)
    with pytest.raises(NotTrusted):
        proof_issuer(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(PAYLOAD)), JSON)
def test_a_changed_claim_is_refused_even_from_the_sender(name: str, value: Any) -> None:
    assume(type(value) is not type(PAYLOAD[name]) or value != PAYLOAD[name])
    assume(not (name in {"iat", "exp"} and type(value) is int))
    with pytest.raises(NotTrusted):
        check(signed(HEADER, {**PAYLOAD, name: value}))


# --- requests -----------------------------------------------------------------------------------------

REQUEST: dict[str, Any] = {"method": "POST", "path": "/v1/claims?x=1", "body": b'{"a":1}'}


def ask(authorization: str, **changes: Any) -> str:
    parts = {"subject": ME, "audience": SENDER.id, "now": NOW, **REQUEST, **changes}
    keys = parts.pop("keys", {EXECUTOR.id: EXECUTOR.public})
    return verify_request(authorization, keys=keys, **parts).jti


def proof(**changes: Any) -> str:
    parts = {"subject": ME, "audience": SENDER.id, "now": NOW, **REQUEST, **changes}
    return sign_request(parts.pop("key", EXECUTOR), **parts)


def test_a_request_is_proved_and_each_proof_is_another() -> None:
    assert proof_issuer(proof()) == ME
    assert ask(proof()) != ask(proof())


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "GET"},
        {"path": "/v1/claims"},
        {"path": "/v1/claims?x=2"},
        {"body": b'{"a":2}'},
        {"body": b""},
        {"subject": "x" + "b" * 16},
        {"audience": "another sender"},
        {"now": NOW + 121},
        {"now": NOW - 61},
        {"keys": {}},
        {"keys": {EXECUTOR.id: STRANGER.public}},
        {"keys": {EXECUTOR.id: {**EXECUTOR.public, "d": "x"}}},
        {"keys": {EXECUTOR.id: {"kty": "oct", "k": "x"}}},
    ],
)
def test_a_proof_is_for_one_request_only(changes: dict[str, Any]) -> None:
    authorization = proof()
    with pytest.raises(NotTrusted):
        ask(authorization, **changes)


@pytest.mark.parametrize(
    "authorization",
    ["", "TF-Proof", "TF-Proof ", "Bearer x.y.z", "TF-Proof a.b", "tf-proof " + proof()[9:], proof() + " x"],
)
def test_no_proof_is_no_proof(authorization: str) -> None:
    with pytest.raises(NotTrusted):
        ask(authorization)


def test_an_order_is_no_proof_and_a_proof_no_order() -> None:
    with pytest.raises(NotTrusted):
        ask(f"TF-Proof {TOKEN}", subject=SENDER.id, audience=ME, keys={SENDER.id: SENDER.public})
    with pytest.raises(NotTrusted):
        check(proof(key=SENDER, subject=SENDER.id, audience=ME).removeprefix("TF-Proof "))
    assert ORDER_TYPE != PROOF_TYPE


# --- keys and join tokens -----------------------------------------------------------------------------


def test_a_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "key.json"
    key = SigningKey.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["key.json"]
    again = SigningKey.load_or_create(path)
    assert (again.id, again.public) == (key.id, key.public)
    token = sign_order(again, sender=key.id, executor=ME, order=ORDER, now=NOW)
    assert verify_order(token, sender=key.id, keys={key.id: key.public}, executor=ME, now=NOW) == ORDER


X25519 = json.dumps({"kty": "OKP", "crv": "X25519", "x": "A" * 43, "d": "A" * 43})


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param("hello", id="text"),
        pytest.param("[]", id="list"),
        pytest.param("{}", id="no members"),
        pytest.param('{"kty": "oct", "k": "AAAA"}', id="symmetric"),
        pytest.param(json.dumps(SENDER.public), id="public"),
        pytest.param(X25519, id="X25519"),
    ],
)
def test_a_file_that_is_no_private_key_is_told(content: str, tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    path.write_text(content)
    with pytest.raises(SettingsError, match=r"key\.json is not a private Ed25519 key"):
        SigningKey.load_or_create(path)
    assert path.read_text() == content


def test_only_a_public_key_is_a_public_key() -> None:
    private = SENDER._key.as_dict(private=True)
    for data in (private, {}, {**SENDER.public, "crv": "Ed448"}, {**SENDER.public, "use": "sig"}):
        with pytest.raises(NotTrusted):
            public_jwk(data)


def test_an_executor_is_its_key() -> None:
    assert executor_id(EXECUTOR.public) == ME
    assert executor_id(STRANGER.public) != ME
    assert len(ME) == 17


def test_a_join_token_carries_the_senders_fingerprint_and_is_stored_as_a_digest() -> None:
    token = new_join_token(SENDER.id)
    assert parse_join_token(f" {token.text}\n") == token
    assert token.sender_key_id == SENDER.id
    secret = token.text.split("_")[1]
    assert token.digest == digest_secret(secret) == hashlib.sha256(secret.encode()).hexdigest()
    assert secret not in token.digest
    assert new_join_token(SENDER.id) != token


@given(st.text(max_size=130) | st.just("tfj_" + "a" * 64) | st.just(f"tfj_{'a' * 63}_{SENDER.id}"))
def test_other_text_is_no_join_token(text: str) -> None:
    with pytest.raises(NotTrusted, match="not a join token"):
        parse_join_token(text)


@given(st.integers(0, 111), st.sampled_from(string.ascii_letters + string.digits))
def test_a_mistyped_join_token_is_another_or_none(at: int, character: str) -> None:
    token = new_join_token(SENDER.id)
    mutated = token.text[:at] + character + token.text[at + 1 :]
    assume(mutated != token.text)
    try:
        found = parse_join_token(mutated)
    except NotTrusted:
        return
    assert (found.digest, found.sender_key_id) != (token.digest, token.sender_key_id)
