"""What may stand where git expects a URL, a ref, a commit or a path."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainforge.hooks.addresses import (
    AddressRefused,
    repository_id,
    validate_branch,
    validate_commit,
    validate_folder,
    validate_ref,
    validate_url,
)

HOSTILE_URLS = [
    "http://169.254.169.254/latest",
    "https://169.254.169.254/x",
    "http://2130706433/x",
    "https://0x7f.1/x",
    "http://0177.0.0.1/x",
    "http://127.1/x",
    "https://[fd00:ec2::254]/x",
    "https://[::ffff:169.254.169.254]/x",
    "git@2130706433:x",
    "ssh://git@0x7f.1/x",
    "https://224.0.0.1/x",
    "http://0.0.0.0/x",
    "",
    "-u/bin/sh",
    "--upload-pack=touch x",
    "ext::sh -c touch% x",
    "EXT::sh -c x",
    "fd::17/x",
    "transport::address",
    "file:///etc",
    "/etc",
    "file://host/etc",
    "../relative",
    "relative/path",
    "git://example.org/x",
    "ftp://example.org/x",
    "HTTPS://example.org/x",
    "git+ssh://example.org/x",
    "http://example.org/x",
    "http://93.184.216.34/x",
    "https://user@example.org/x",
    "https://user:password@example.org/x",
    "ssh://user:password@example.org/x",
    "ssh://-oProxyCommand=touch%20x/y",
    "ssh://-o@example.org/x",
    "ssh://host/-x",
    "-oProxyCommand=x:y",
    "git@-oProxyCommand=x:y",
    "git@host:-x",
    "https:///x",
    "https://",
    "https://example.org",
    "https://example.org/",
    "https://example.org/x?y",
    "https://example.org/x#y",
    "https://example.org/../x",
    "https://example.org/a/../../x",
    "https://example.org/a//b",
    "https://example.org/-x",
    "https://example.org/x y",
    "https://example.org/x\ny",
    "https://example.org/x\x00",
    "https://example.org/x\u202ey",
    "https://example.org\\@evil.org/x",
    "https://exa$(x)mple.org/x",
    "https://example.org/$(x)",
    "https://example.org/`x`",
    "https://example.org:0/x",
    "https://example.org:99999/x",
    "https://[::1/x",
    "https://[nonsense]/x",
    "https://example.org/" + "x" * 3000,
]


@pytest.mark.parametrize("url", HOSTILE_URLS)
def test_hostile_urls_are_refused(url: str) -> None:
    with pytest.raises(AddressRefused) as caught:
        validate_url(url)
    assert "password" not in str(caught.value) or "user:password" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("url", "scheme", "identity"),
    [
        ("https://GitHub.com/Octo/Repo.git", "https", "git:github.com/Octo/Repo"),
        ("https://github.com/Octo/Repo/", "https", "git:github.com/Octo/Repo"),
        ("https://github.com:443/Octo/Repo", "https", "git:github.com/Octo/Repo"),
        ("git@github.com:Octo/Repo.git", "ssh", "git:github.com/Octo/Repo"),
        ("ssh://git@github.com/Octo/Repo", "ssh", "git:github.com/Octo/Repo"),
        ("https://example.org:8443/x", "https", "git:example.org:8443/x"),
        ("http://127.0.0.1:8420/git/x.git", "http", "git:127.0.0.1:8420/git/x"),
        ("http://192.168.1.5:8420/git/x", "http", "git:192.168.1.5:8420/git/x"),
        ("http://[::1]:80/x", "http", "git:[::1]/x"),
        ("http://sender:8420/git/x", "http", "git:sender:8420/git/x"),
        ("http://box.local/x", "http", "git:box.local/x"),
        ("https://example.org/~user/x+y.git", "https", "git:example.org/~user/x+y"),
    ],
)
def test_one_repository_has_one_id_however_it_is_written(url: str, scheme: str, identity: str) -> None:
    assert validate_url(url).scheme == scheme
    assert repository_id(url) == identity


def test_local_paths_only_where_they_are_allowed() -> None:
    assert validate_url("/srv/git/x.git", allow_file=True).text == "file:///srv/git/x.git"
    assert repository_id("file:///srv/git/x.git") == repository_id("/srv/git/x.git/") == "git:/srv/git/x"
    for url in ("/srv/../etc", "file:///srv/../etc", "file://host/x", "x/y"):
        with pytest.raises(AddressRefused):
            validate_url(url, allow_file=True)


@given(st.text(max_size=40))
@settings(max_examples=300)
def test_any_text_is_a_url_or_refused(text: str) -> None:
    try:
        url = validate_url(text)
    except AddressRefused:
        return
    assert not url.text.startswith("-")
    assert url.scheme in {"https", "http", "ssh"}
    assert repository_id(text).startswith("git:")


REF_CHARACTERS = st.text(alphabet="ab/.@{}~^:?*[\\-_ é\x01\x7f", min_size=1, max_size=12)


@given(REF_CHARACTERS)
@settings(max_examples=60, deadline=None)
@example("a.lock")
@example("a.lock/b")
@example("@")
@example("a/.b")
@example("a..b")
def test_a_ref_that_is_taken_is_one_for_git(name: str) -> None:
    ref = f"refs/heads/{name}"
    try:
        validate_ref(ref)
    except AddressRefused:
        return
    assert subprocess.run(["git", "check-ref-format", ref], check=False).returncode == 0


@pytest.mark.parametrize(
    "ref",
    ["", "main", "refs/", "refs/heads", "refs/heads/", "refs/heads/-x", "refs/heads/--upload-pack=x", "HEAD",
     "refs/heads/../../x", "refs/heads/a b", "refs/heads/x\n", "refs/heads/x.lock", "refs/heads/\u202ex",
     "+refs/heads/x", "refs/heads/x:refs/heads/y", "refs/heads/" + "x" * 2000],
)  # fmt: skip
def test_hostile_refs_are_refused(ref: str) -> None:
    with pytest.raises(AddressRefused):
        validate_ref(ref)


def test_ordinary_refs_are_taken() -> None:
    for ref in (
        "refs/heads/main",
        "refs/heads/feature/x-1",
        "refs/tags/v1.0",
        "refs/heads/größe",
        "refs/heads/@",
    ):
        assert validate_ref(ref) == ref
    with pytest.raises(AddressRefused):
        validate_branch("HEAD")


@pytest.mark.parametrize(
    "commit", ["", "HEAD", "a" * 39, "A" * 40, "g" * 40, "a" * 41, "a" * 40 + "\n", "-" * 40]
)
def test_only_full_commit_ids(commit: str) -> None:
    with pytest.raises(AddressRefused):
        validate_commit(commit)


@pytest.mark.parametrize(
    "path", ["", "/a", "a/", "a//b", ".", "..", "a/../b", ".git", "a/.git/x", ".GIT/config", ".git./x",
             "a\nb", "a\0b", "\ud800"],
)  # fmt: skip
def test_paths_that_leave_the_tree(path: str) -> None:
    with pytest.raises(AddressRefused):
        validate_folder(path)
