"""One function per parser of what comes from outside: bytes in, nothing but its declared error out.

The suite runs them over their seeds and over what hypothesis makes of those; `python -m tests.fuzz NAME`
lets Atheris look for more. What a parser accepts is held to what it promises.
"""

from __future__ import annotations

import io
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from support.archives import FORM, SEEDS
from trainforge.config import messages, result
from trainforge.config.cron import parse_cron
from trainforge.config.errors import ManifestError, MessageInvalid, NotTrusted, SettingsError, TooLarge
from trainforge.config.manifest import apply_overrides, parse_manifest
from trainforge.config.policy import load_policy
from trainforge.config.redact import Redactor
from trainforge.config.strict_json import read_json
from trainforge.config.trust import (
    ORDER_TYPE,
    SigningKey,
    parse_join_token,
    proof_issuer,
    verify,
)
from trainforge.executor import collect, follow, metrics
from trainforge.executor.journal import Journal
from trainforge.hooks import addresses, forges, gitrun, oidc, scripts, triggers
from trainforge.hooks.bundle import Bundle, Limits
from trainforge.hooks.bundle_names import BundleRefused
from trainforge.hooks.github import PushHint
from trainforge.hooks.github_deliveries import RepositoryDispatch, parse_delivery
from trainforge.hooks.github_dispatch import read_request
from trainforge.sender import api, compat_network, direct, planned, preview, text, uploads
from trainforge.sender.auth import basic_password

KEY = SigningKey.generate()
SECRETS = ("hunter2-hunter2", "pa$$ word'\"\\x", "\u00e4\u00f6\u00fc-\u20ac\u20ac\u20ac")
TOKEN = KEY.sign(ORDER_TYPE, {"iss": KEY.id, "aud": "x", "jti": "j" * 22, "iat": 1, "exp": 200, "order": {}})
MANIFEST = (
    b"project: {name: digits}\ntraining: {script: train.py, params: {lr: 1e-3}}\n"
    b"resources: {nodes: 1..2, gpu: 24Gi..:1}\non: {push: {branches: [main, 'release/*']}}\n"
)
DELIVERIES = (
    b'create\n{"ref":"x","ref_type":"branch","repository":{"id":1,"full_name":"o/r"}}',
    b'issue_comment\n{"action":"created","issue":{"number":1,"pull_request":{}},"comment":{"id":2,"user":'
    b'{"login":"ada"},"body":"/trainforge run"},"repository":{"id":1,"full_name":"o/r"}}',
    b'check_run\n{"action":"requested_action","requested_action":{"identifier":"stop"},"check_run":{"id":3,'
    b'"name":"x","head_sha":"' + b"a" * 40 + b'"},"repository":{"id":1,"full_name":"o/r"}}',
    b'repository_dispatch\n{"action":"trainforge","branch":"main","client_payload":{"ref":"x","set":{"a":1}},'
    b'"repository":{"id":1,"full_name":"o/r"}}',
    b'installation\n{"action":"deleted","installation":{"id":1,"app_id":2,"account":{"login":"a"}}}',
)
PUSH = (
    b'{"ref":"refs/heads/main","before":"' + b"0" * 40 + b'","after":"' + b"a" * 40 + b'","forced":false,'
    b'"repository":{"id":1,"full_name":"o/r","clone_url":"https://github.com/o/r.git"}}'
)
NOTICE = (
    b'{"repository":"/srv/r.git","refs":[{"old":"' + b"0" * 40 + b'","new":"' + b"a" * 40 + b'",'
    b'"ref":"refs/heads/main"}]}'
)
FORGED = (
    b'{"repository":{"slug":"r","project":{"key":"P"},"links":{"clone":[{"href":"https://x/p/r.git"}],'
    b'"html":{"href":"https://x/p/r"}}},"project":{"git_http_url":"https://x/p/r.git"}}'
)
ENDPOINT = (
    b'{"name":"a","public_url":"https://x.example","ip":"192.0.2.1","port":1,"timestamp":"","capabilities":'
    b'{"hostname":"a","cpu_count":1,"memory_bytes":1,"disk_free_bytes":1},"public_key":{"kty":"OKP"}}'
)
RECORD = b'{"n":1,"time":1.0,"kind":"phase","data":{"phase":"checkout"}}\n'


@dataclass(frozen=True)
class Entry:
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


def words(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def manifest(data: bytes) -> None:
    try:
        made = parse_manifest(data)
    except ManifestError as error:
        assert all(problem.place is not None and problem.place.line for problem in error.problems)
        return
    assert parse_manifest(data) == made
    triggers.matches("release/1", made.on.push.branches or ())


def overrides(data: bytes) -> None:
    key, _, value = words(data).partition("=")
    try:
        apply_overrides(parse_manifest(MANIFEST), {key: value})
    except ManifestError:
        return


def plan(data: bytes) -> None:
    try:
        preview.preview(parse_manifest(data), (), 0.0)
    except ManifestError:
        return


def delivery(data: bytes) -> None:
    """Whatever GitHub calls it: first the event's name, then its payload."""
    event, _, body = data.partition(b"\n")
    try:
        found = parse_delivery(words(event), "12345678-abcd", body)
        if isinstance(found.about, RepositoryDispatch):
            assert read_request(found.about.payload, found.about.branch).ref[:5] in {"", "refs/"}
    except MessageInvalid as error:
        assert error.status in {400, 422}
        return
    if found.repository is not None:
        assert isinstance(found.repository.number, int)


def webhook(data: bytes) -> None:
    try:
        hint = parse_delivery("push", "12345678-abcd", data).about
    except MessageInvalid as error:
        assert error.status == 400
        return
    assert isinstance(hint, PushHint)
    assert hint.ref.startswith("refs/")
    assert ".." not in hint.ref


def notice(data: bytes) -> None:
    try:
        scripts.parse_notice(data)
    except (MessageInvalid, addresses.AddressRefused):
        return


def forge(data: bytes) -> None:
    """Each event of each server in turn, and what an executor says of where it is."""
    for name in forges.EVENTS:
        for event in ("Push Hook", "push", "repo:refs_changed"):
            try:
                found = forges.read(data, {name: event})
            except MessageInvalid:
                continue
            assert found is None or found.ids or found.tail
    try:
        assert direct.read_endpoint(data, allow_private=False).executor.startswith("x")
    except (MessageInvalid, NotTrusted, addresses.AddressRefused):
        return


class NoKeys(oidc.Issuer):
    def _fetch(self) -> dict[str, Any]:
        return {}


def id_token(data: bytes) -> None:
    try:
        NoKeys("https://issuer.example").verify(data.decode("latin-1"), "https://sender.example", 100.0)
    except NotTrusted:
        return
    raise AssertionError("nobody has signed it")


def signed(data: bytes) -> None:
    """Whatever it is, it is none of ours: only what the key signed, byte for byte, is believed."""
    said = data.decode("latin-1")
    for read in (proof_issuer, parse_join_token):
        try:
            read(said)
        except NotTrusted:
            continue
    try:
        verify(said, typ=ORDER_TYPE, keys={KEY.id: KEY.public}, issuer=KEY.id, audience="x", now=100.0)
    except NotTrusted:
        return
    assert said == TOKEN


def redactor(data: bytes) -> None:
    made = Redactor(SECRETS)
    whole = made.bytes(data)
    stream, size = made.stream(), max(1, data[0] % 13 if data else 1)
    pieces = b"".join(stream.feed(data[at : at + size]) for at in range(0, len(data), size))
    assert pieces + stream.finish() == whole
    assert not any(secret.encode() in whole for secret in SECRETS)


def shown(data: bytes) -> None:
    """Texts for pages, terminals and results keep nothing that acts."""
    said = words(data)
    for made in (text.plain(said), gitrun.sanitise(data), result.plain(said)):
        bad = [c for c in made if unicodedata.category(c) == "Cc" and c not in "\n\t"]
        assert not bad, bad
        assert not any("\u202a" <= c <= "\u202e" or "\u2066" <= c <= "\u2069" for c in made)
    path = result.safe_path(said)
    assert not path.startswith("/")
    assert not {"", ".", ".."} & set(path.split("/"))
    basic_password(f"Basic {said}")


def address(data: bytes) -> None:
    said = words(data)
    for check in (
        addresses.validate_url,
        addresses.validate_ref,
        addresses.validate_branch,
        addresses.validate_commit,
        addresses.validate_folder,
    ):
        try:
            made: Any = check(said)
        except addresses.AddressRefused:
            continue
        assert "\0" not in said
        if check is not addresses.validate_folder:
            assert not said.startswith("-")
        if isinstance(made, addresses.GitUrl):
            assert made.scheme in {"https", "ssh", "http"}


def log_frames(data: bytes) -> None:
    rest, cutting, taken = data, False, 0
    while True:
        chunk = follow.take(rest, cutting=cutting, final=True)
        assert 0 <= chunk.size <= len(rest)
        assert len(chunk.text) <= 2 * len(data) + 200
        taken, rest, cutting = taken + chunk.size, rest[chunk.size :], chunk.cutting
        if not rest or not chunk.size:
            break
    assert taken == len(data)


def journal(data: bytes) -> None:
    """A torn or damaged file opens, and what is appended to it is read again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "journal.jsonl")
        path.write_bytes(data)
        made = Journal(path)
        before = made.last
        made.append("phase", messages.Phase(phase="data"))
        made.close()
        again = Journal(path)
        assert again.last == before + 1
        assert again.after(before)[0].kind == "phase"
        again.close()


def metric_lines(data: bytes) -> None:
    said = words(data)
    for found in (metrics.from_line(said, 0), metrics.from_json(said, 0)):
        assert found is None or messages.Metric.model_validate_json(found.model_dump_json())


def artifact_names(data: bytes) -> None:
    pattern, _, name = words(data).partition("\n")
    collect.matcher(pattern)(name)
    collect.matcher(pattern)("a/" * 30 + "a" * 100)
    triggers.matches(name, [pattern])
    assert "/" not in collect.digest_name(name)


def policy(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "policy.yaml")
        path.write_bytes(data)
        try:
            load_policy(path)
        except SettingsError:
            return


def cron(data: bytes) -> None:
    try:
        made = parse_cron(words(data))
    except ValueError:
        return
    moment = made.next_after(1_700_000_000.0)
    assert moment is None or moment > 1_700_000_000


WIRE: tuple[type[BaseModel], ...] = (
    messages.Order,
    messages.JournalBatch,
    messages.JoinRequest,
    messages.Heartbeat,
    messages.Claim,
    messages.KeyChange,
    messages.SecretsAsk,
    messages.Endpoint,
)
ASKS: tuple[type[BaseModel], ...] = (
    api.SubmitAsk,
    api.PreviewAsk,
    api.RepositoryAsk,
    planned.PlanAsk,
    planned.Preferences,
    compat_network.MachineAsk,
    compat_network.RankAsk,
)


def bundle(data: bytes) -> None:
    """What is taken is unpacked to what was said, as Python's reader does; names lead nowhere else."""
    try:
        made = Bundle(io.BytesIO(data), Limits(total_bytes=2**24, seconds=5))
        found = {one.path: b"".join(made.contents(one)) for one in made.files}
    except BundleRefused as error:
        assert error.hint
        return
    assert [len(content) for content in found.values()] == [one.size for one in made.files]
    for path in found:
        assert addresses.validate_folder(path) == path
    with zipfile.ZipFile(io.BytesIO(data)) as other:
        read = [other.read(info) for info in other.infolist() if not info.is_dir()]
    assert sorted(read) == sorted(found.values())


def form(data: bytes) -> None:
    """In whatever pieces it comes, the file is no more than what was sent, and the fields are text."""
    reader, size, file = uploads.Reader("multipart/form-data; boundary=b", 64), 1 + len(data) % 17, b""
    try:
        for at in range(0, len(data), size):
            file += reader.feed(data[at : at + size])
        fields = reader.finish()
    except (MessageInvalid, TooLarge):
        return
    assert file in data
    assert len(file) <= 64
    assert not any("\0" in part for field in fields.items() for part in field)


def wire(data: bytes) -> None:
    for model in WIRE:
        try:
            made = model.model_validate_json(data)
        except ValidationError:
            continue
        made.model_dump_json()


def request(data: bytes) -> None:
    try:
        read_json(data)
    except MessageInvalid:
        return
    for model in ASKS:
        try:
            made = model.model_validate_json(data, strict=True)
        except ValidationError:
            continue
        made.model_dump_json()


ENTRIES: dict[str, Entry] = {
    "manifest": Entry(manifest, (MANIFEST, b"", b"# nothing", b"a: &x [*x]", b"\xff\xfe", b"[" * 2000)),
    "overrides": Entry(overrides, (b"training.params.lr=0.1", b"resources.nodes=2..1", b"a.b.c=", b"=")),
    "plan": Entry(plan, (MANIFEST, MANIFEST + b"strategy: {matrix: {lr: [1, 2, 3], seed: [1, 2]}}\n")),
    "delivery": Entry(delivery, DELIVERIES),
    "webhook": Entry(webhook, (PUSH, PUSH[:-1], b'{"ref":1}', b"[" * 5000, b'{"a":1e999}', b'{"a":NaN}')),
    "notice": Entry(notice, (NOTICE, NOTICE[:-9], b'{"repository":"x","refs":[{}]}')),
    "forge": Entry(forge, (PUSH, FORGED, ENDPOINT, b'{"repository":{"links":{"clone":[1]}}}', b"[" * 5000)),
    "id_token": Entry(
        id_token, (TOKEN.encode(), b"e30.e30.", b"eyJhbGciOiJub25lIn0.e30.", b"eyJraWQiOjF9.e30.e30")
    ),
    "signed": Entry(signed, (TOKEN.encode(), TOKEN[:-1].encode(), b"a.b.c", b"TF-Proof " + TOKEN.encode())),
    "redactor": Entry(redactor, (b"x hunter2-hunter2 y", b"aHVudGVyMi1odW50ZXIy", b"hunter2-hunter")),
    "shown": Entry(shown, (b"\x1b[31mred\x1b]8;;x\x07", "\u202eabc\u2066".encode(), b"../../etc", b"\x9b1m")),
    "address": Entry(
        address, (b"https://github.com/o/r.git", b"ext::sh -c x", b"refs/heads/main", b"-uplo", b"a" * 40)
    ),
    "log_frames": Entry(log_frames, (b"a\nb\r\nc\rd\n", b"x" * 9000, b"10%\r20%\r\n", b"\xff\xfe\n")),
    "journal": Entry(journal, (RECORD, RECORD * 2, RECORD[:-1], b"[]\n", b"{}\n", b"null\n", b"\x00\n")),
    "metric_lines": Entry(
        metric_lines,
        (b'PROGRESS: {"loss": 0.5, "step": 1}', b"{'loss': 0.5, 'epoch': 1.0}", b'{"a": 1e999}', b"[" * 9000),
    ),
    "artifact_names": Entry(
        artifact_names, (b"outputs/**\noutputs/a", b"**/" * 20 + b"z\nb", b"*a" * 30 + b"\na", b"[!\n[")
    ),
    "policy": Entry(policy, (b"max_gpus: 1\nbranches: [main]\n", b"max_time: 12h", b"x: 1", b"max_gpus: -1")),
    "cron": Entry(cron, (b"*/5 0 * * 1", b"0 0 30 2 *", b"99999 * * * *", b"1-0 * * * *")),
    "wire": Entry(wire, (b"{}", b'{"nodes": []}', b'{"token": "x"}', b"[" * 9000)),
    "form": Entry(form, (FORM, FORM[:-9], b"--b--\r\n", b"--b\r\n:\r\n", b"--b\r\nContent-Disposition: x")),
    "bundle": Entry(bundle, SEEDS),
    "request": Entry(request, (b"{}", b'{"manifest": "x"}', b'{"a":1,"a":2}', b'{"url": "\\u0000"}')),
}
