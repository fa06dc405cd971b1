"""A machine owner's policy: what it allows, the words and the line when it does not, and mistakes in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainforge.config.errors import SettingsError
from trainforge.config.manifest import parse_manifest
from trainforge.config.messages import Capabilities
from trainforge.config.policy import RULES, Asked, Policy, asked_of, load_policy, refusal

FILE = """\
# what may train here
repositories: ["builtin:digits", "https://github.com/ours/*"]
branches: [main, "release/*", "refs/tags/v*"]
launchers: [accelerate, python]
images: ["ours/*@sha256:*"]
max_time: 2h
max_memory: 16Gi
max_gpus: 1
max_cpus: 4
max_nodes: 2
"""
MANIFEST = "project: {name: p}\ntraining: {script: t.py}\ntimeout: {run: 1h}\n"


def asked(text: str = MANIFEST, **changes: Any) -> Asked:
    said = {"repository": "builtin:digits", "ref": "refs/heads/main", "gpus": 0, "nodes": 1} | changes
    return asked_of(parse_manifest(text), **said)


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    path = tmp_path / "policy.yaml"
    path.write_text(FILE)
    return load_policy(path)


def test_what_every_rule_allows_is_allowed(policy: Policy) -> None:
    assert refusal(policy, asked()) == ""
    assert refusal(None, asked(repository="builtin:other")) == ""
    assert refusal(Policy(), asked(repository="git:anywhere/x", ref="")) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"repository": "builtin:other"}, "repository builtin:other (policy.yaml:2: repositories)"),
        ({"repository": "git:github.com/theirs/x"}, "(policy.yaml:2: repositories)"),
        ({"ref": "refs/heads/mains"}, "the branch mains (policy.yaml:3: branches)"),
        ({"ref": "refs/tags/x"}, "(policy.yaml:3: branches)"),
        ({"ref": ""}, "the branch (none) (policy.yaml:3: branches)"),
        ({"text": MANIFEST.replace("t.py", "t.py, launcher: torchrun")}, "launcher torchrun (policy.yaml:4"),
        ({"text": MANIFEST.replace("1h", "3h")}, "runs of 7200 s, timeout.run is 10800 s (policy.yaml:6"),
        ({"text": MANIFEST[: MANIFEST.index("timeout")]}, "timeout.run is not limited (policy.yaml:6"),
        ({"text": MANIFEST + "resources: {memory: 17Gi}\n"}, "bytes of memory, the job asks for"),
        ({"gpus": 2}, "allows 1 GPUs, the job asks for 2 (policy.yaml:8: max_gpus)"),
        ({"text": MANIFEST + "resources: {cpu: 5}\n"}, "(policy.yaml:9: max_cpus)"),
        ({"nodes": 3}, "(policy.yaml:10: max_nodes)"),
    ],
)
def test_a_refusal_names_the_rule_and_its_line(policy: Policy, changes: dict[str, Any], words: str) -> None:
    assert words in refusal(policy, asked(**changes))


@pytest.mark.parametrize(
    ("repository", "url", "allowed"),
    [
        ("git:github.com/ours/x", "", True),
        ("git:github.com/ours/x", "https://GitHub.com/ours/x.git", True),
        ("git:github.com/ours/x", "git@github.com:ours/x.git", True),
        ("git:evil.com/github.com/ours/x", "https://evil.com/github.com/ours/x", False),
        ("git:github.com.evil.com/ours/x", "https://github.com.evil.com/ours/x", False),
        ("builtin:digits2", "", False),
    ],
)
def test_a_repository_is_known_by_id_or_url(policy: Policy, repository: str, url: str, allowed: bool) -> None:
    assert (refusal(policy, asked(repository=repository, url=url)) == "") is allowed


def test_ways_of_training() -> None:
    image = f"ours/t@sha256:{'0' * 64}"
    boxed = asked(MANIFEST + f"environment: {{image: '{image}'}}\n")
    assert "containers only (rule native)" in refusal(Policy(native=False), asked())
    assert refusal(Policy(native=False), boxed) == ""
    assert f"the image {image}" in refusal(Policy(images=["theirs/*"]), boxed)
    assert "environment.network must be none" in refusal(Policy(network="none"), asked())
    assert refusal(Policy(network="none"), asked(MANIFEST + "environment: {network: none}\n")) == ""
    assert refusal(Policy(launchers=[]), asked()) != ""


@pytest.mark.parametrize(
    ("volume", "rules", "words"),
    [
        ("/data", None, "does not let /data be read"),
        ("/data/train:/d", ["/data"], ""),
        ("/data2", ["/data"], "does not let /data2 be read"),
        ("/data:/d:rw", ["/data"], "does not let /data be written to"),
        ("/data:/d:rw", ["/data:rw"], ""),
        ("/data", [], "does not let /data be read"),
    ],
)
def test_volumes_are_the_owners_to_allow(volume: str, rules: list[str] | None, words: str) -> None:
    boxed = asked(MANIFEST + f"environment: {{image: x, volumes: ['{volume}']}}\n")
    said = refusal(Policy(volumes=rules), boxed)
    assert words in said and bool(said) == bool(words)
    assert refusal(None, boxed) != ""
    assert boxed.isolation == "container"


def test_it_travels_with_the_capabilities(policy: Policy) -> None:
    has = Capabilities(hostname="x", cpu_count=1, memory_bytes=1, disk_free_bytes=1, policy=policy)
    there = Capabilities.model_validate_json(has.model_dump_json()).policy
    assert there == policy
    for one in (Policy(), Policy(max_gpus=0), Policy(max_time=60.0)):
        assert Policy.model_validate_json(one.model_dump_json()) == one
    assert there is not None
    assert "(policy.yaml:8: max_gpus)" in refusal(there, asked(gpus=9))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("repository: [a]\n", "policy.yaml:1:1: repository is not a rule"),
        ("\nmax_gpus: many\n", ":2:"),
        ("max_gpus: -1\n", "max_gpus"),
        ("branches: main\n", "branches"),
        ("lines: {a: 1}\n", "lines is not a rule"),
        ("- a\n", ""),
        ("max_time: [1]\n", "max_time"),
        ("a: &x 1\n", ""),
    ],
)
def test_a_mistake_in_the_file_is_placed(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_policy(path)
    assert words in str(caught.value)
    assert caught.value.place is not None


def test_no_file_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_policy(tmp_path / "none.yaml")
    for text in ("", "# nothing yet\n", "{}\n"):
        (tmp_path / "policy.yaml").write_text(text)
        with pytest.raises(SettingsError, match="there are no rules in this file"):
            load_policy(tmp_path / "policy.yaml")


def test_the_page_names_every_rule() -> None:
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    for rule in RULES:
        assert f"`{rule}`" in page, rule
