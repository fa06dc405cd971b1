"""Which endpoint files a one-shot sender goes by."""

from __future__ import annotations

import pytest

from trainforge.config.errors import MessageInvalid, NotTrusted
from trainforge.config.messages import Capabilities, Endpoint
from trainforge.config.trust import SigningKey, executor_id, parse_public_text, public_text
from trainforge.hooks.addresses import AddressRefused
from trainforge.sender.announced import read_endpoint

KEY = SigningKey.generate()


def _file(**other: object) -> bytes:
    has = Capabilities(hostname="a", cpu_count=1, memory_bytes=1, disk_free_bytes=1)
    said: dict[str, object] = {
        "name": "alpha", "public_url": "https://alpha.example.org", "ip": "192.0.2.1", "port": 443,
        "timestamp": "2026-11-21T12:00:00+00:00", "capabilities": has, "public_key": KEY.public,
        "executor": executor_id(KEY.public),
    }  # fmt: skip
    return Endpoint.model_validate(said | other).model_dump_json().encode()


def test_an_executor_is_found_at_the_address_that_it_announces() -> None:
    assert read_endpoint(_file(), allow_private=False).public_url == "https://alpha.example.org"


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", MessageInvalid),
        (b'{"public_url": "https://x"}', MessageInvalid),
        (_file(executor=executor_id(SigningKey.generate().public)), NotTrusted),
        (_file(public_key={"kty": "OKP"}), NotTrusted),
        (_file(public_url="http://127.0.0.1:80"), AddressRefused),
        (_file(public_url="http://169.254.169.254/latest"), AddressRefused),
        (_file(public_url="file:///etc/passwd"), AddressRefused),
    ],
)
def test_what_is_announced_by_nobody_or_of_nowhere_is_left_out(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        read_endpoint(data, allow_private=False)


def test_a_key_is_passed_on_in_one_line() -> None:
    assert parse_public_text(f" {public_text(KEY.public)}\n") == KEY.public
    for bad in ("", "tfk_", "tfk_" + "A" * 42, "tfj_" + "A" * 43, "tfk_" + "!" * 43, "tfk_" + "A" * 42 + "B"):
        with pytest.raises(NotTrusted):
            parse_public_text(bad)
