"""GitHub's webhooks: its own published examples, signed by its own published library."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainforge.config.errors import NotTrusted, TooLarge, TrainForgeError
from trainforge.hooks.github import MAX_BODY_BYTES, PushHint, WebhookInvalid, sign, verify_signature
from trainforge.hooks.github_deliveries import Delivery, Other, parse_delivery

NPM = Path(__file__).parents[1] / "npm"
DELIVERY = "72d3162e-cc78-11e3-81ab-4c9367dc0958"
SECRET = "It's a Secret to Everybody"


def _modules() -> Path:
    modules = NPM / "node_modules" / "@octokit"
    if not modules.is_dir():
        pytest.fail(f"{modules} is missing: run `npm ci --prefix tests/npm`, or `make test`, which does")
    return modules


def _examples(event: str) -> list[dict[str, Any]]:
    index = json.loads((_modules() / "webhooks-examples" / "api.github.com" / "index.json").read_text())
    return [example for entry in index if entry["name"] == event for example in entry["examples"]]


def _sign_by_octokit(bodies: list[str]) -> list[str]:
    program = (
        "import { sign } from '@octokit/webhooks-methods'; import { readFileSync } from 'node:fs';"
        "const { secret, bodies } = JSON.parse(readFileSync(0));"
        "console.log(JSON.stringify(await Promise.all(bodies.map((body) => sign(secret, body)))));"
    )
    done = subprocess.run(
        ["node", "--input-type=module", "-e", program],
        cwd=_modules().parents[1],
        input=json.dumps({"secret": SECRET, "bodies": bodies}),
        capture_output=True,
        text=True,
        check=True,
    )
    signatures: list[str] = json.loads(done.stdout)
    return signatures


def test_the_published_push_examples_are_understood() -> None:
    examples = _examples("push")
    bodies = [json.dumps(example, ensure_ascii=False) for example in examples]
    assert len(examples) >= 7
    for example, body, signature in zip(examples, bodies, _sign_by_octokit(bodies), strict=True):
        verify_signature([SECRET], body.encode(), signature)
        assert sign(SECRET, body.encode()) == signature
        hint = parse_delivery("push", DELIVERY, body.encode()).about
        assert isinstance(hint, PushHint)
        assert hint.repository_ids == ("git:github.com/" + example["repository"]["full_name"],)
        assert (hint.ref, hint.number) == (example["ref"], example["repository"]["id"])
        assert (hint.after is None) == example["deleted"]
        assert (hint.before is None) == example["created"]


# Events of which the sender wants to know more than that they came.
READ = {
    "create", "delete", "installation", "installation_repositories", "pull_request", "issue_comment",
    "check_run", "check_suite", "workflow_dispatch", "repository_dispatch",
}  # fmt: skip


def test_every_published_example_is_understood() -> None:
    index = json.loads((_modules() / "webhooks-examples" / "api.github.com" / "index.json").read_text())
    assert len(index) > 50
    for entry in index:
        for example in entry["examples"]:
            found = parse_delivery(entry["name"], DELIVERY, json.dumps(example).encode())
            assert isinstance(found, Delivery)
            assert isinstance(found.about, Other) == (entry["name"] not in READ | {"push"}) or (
                entry["name"] == "repository"
            )
            if "repository" in example:
                assert found.repository is not None
                assert found.repository.number == example["repository"]["id"]
            if "sender" in example:
                assert found.sender == example["sender"]["login"]


def test_githubs_own_test_vector() -> None:
    signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    verify_signature([SECRET], b"Hello, World!", signature)
    verify_signature(["the new one", SECRET], b"Hello, World!", signature)


@pytest.mark.parametrize(
    "header",
    [None, "", "sha256=", "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
     "sha256=757107EA0EB2509FC211221CCE984B8A37570B6D7586C22C46F4379C8B043E17",
     "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e1",
     "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e170",
     "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17\n",
     "sha256=zz7107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
     "sha256=657107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
     "sha1=757107ea0eb2509fc211221cce984b8a37570b6d", "sha256=é",
     "SHA256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"],
)  # fmt: skip
def test_forged_signatures(header: str | None) -> None:
    with pytest.raises(NotTrusted):
        verify_signature([SECRET], b"Hello, World!", header)


def test_no_secret_is_no_trust() -> None:
    for secrets in ([], [""]):
        with pytest.raises(NotTrusted):
            verify_signature(secrets, b"x", sign("", b"x"))
    with pytest.raises(NotTrusted):
        verify_signature(["other"], b"x", sign(SECRET, b"x"))
    with pytest.raises(NotTrusted):
        verify_signature([SECRET], b"x ", sign(SECRET, b"x"))


def _push(**changes: Any) -> bytes:
    payload = {
        "ref": "refs/heads/main",
        "before": "1" * 40,
        "after": "2" * 40,
        "forced": True,
        "repository": {"id": 7, "full_name": "a/b", "clone_url": "https://github.com/a/b.git"},
    }
    return json.dumps(payload | changes).encode()


def test_a_force_push_is_said_to_be_one() -> None:
    hint = parse_delivery("push", DELIVERY, _push()).about
    assert isinstance(hint, PushHint)
    assert hint.forced


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"{}", b"not json", b"\xff\xfe",
        b'{"ref": NaN}', b'{"x": 1e999}', b'{"x": -Infinity}',
        b'{"ref": "refs/heads/a", "ref": "refs/heads/b"}', b"[" * 100_000,
        _push(ref="refs/heads/../../x"), _push(ref="main"), _push(ref=7), _push(ref=None),
        _push(after="HEAD"), _push(before=""), _push(repository=None), _push(repository=[]),
        _push(repository={"full_name": "a/b"}),
        _push(repository={"full_name": "a/b", "clone_url": "ext::sh -c x", "ssh_url": 7}),
        _push(ref="refs/heads/" + "x" * 5000),
    ],
)  # fmt: skip
def test_signed_nonsense_is_refused(body: bytes) -> None:
    with pytest.raises(WebhookInvalid) as caught:
        parse_delivery("push", DELIVERY, body)
    assert caught.value.status == 400


def test_a_body_over_the_cap_and_a_delivery_without_id() -> None:
    with pytest.raises(TooLarge):
        parse_delivery("push", DELIVERY, b" " * (MAX_BODY_BYTES + 1))
    for delivery in ("", "x", "a" * 100, "a b c d e f g h", "12345678\n"):
        with pytest.raises(WebhookInvalid):
            parse_delivery("push", delivery, _push())


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.dictionaries(st.sampled_from(["ref", "before", "after", "repository"]), inner),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_bytes_are_a_hint_or_refused(body: bytes) -> None:
    with contextlib.suppress(TrainForgeError):
        parse_delivery("push", DELIVERY, body)
