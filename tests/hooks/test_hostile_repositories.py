"""Repositories that were made to attack whoever reads them: nothing of theirs runs or gets out.

Each is fetched and checked out as an executor does it and read as the sender does it. What git's own checks
refuse is refused with git's words; the rest is data. The cases follow the weaknesses that git and those who
call it had: CVE-2018-11235 and -17456, CVE-2024-32002, -32004, -32021, -32465, CVE-2025-48384, -48385.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from support.repositories import ENVIRONMENT, Project
from trainforge.config.errors import TooLarge
from trainforge.hooks import git

GITLINK, SYMLINK, FILE = "160000", "120000", "100644"


class Hostile(Project):
    """A work tree whose index takes what `git add` would refuse."""

    def __init__(self, path: Path, marker: Path) -> None:
        super().__init__(path)
        self.marker = marker
        self.first = self.commit({"train.py": "print(1)\n"})

    def blob(self, content: str) -> str:
        """The id of a blob with this content."""
        (self.path.parent / "content").write_text(content, newline="")
        return self.git("hash-object", "-w", "--no-filters", str(self.path.parent / "content")).stdout.strip()

    def tree(self, *entries: tuple[str, str, str]) -> str:
        """A tree of (mode, id, name), however unfit; names may have anything but NUL."""
        kinds = {GITLINK: "commit", "40000": "tree"}
        lines = "".join(f"{mode} {kinds.get(mode, 'blob')} {id_}\t{name}\0" for mode, id_, name in entries)
        argv = ["git", "mktree", "-z", "--missing"]
        done = subprocess.run(
            argv, cwd=self.path, env=ENVIRONMENT, input=lines.encode(), capture_output=True, check=True
        )
        return done.stdout.decode().strip()

    def commit_tree(self, *entries: tuple[str, str, str], message: str = "hostile") -> str:
        tree = self.tree(*entries)
        made = self.git("commit-tree", tree, "-p", self.first, "-m", message).stdout.strip()
        self.git("update-ref", "refs/heads/main", made)
        return made


def _submodule(path: str, url: str, *, name: str = "") -> Callable[[Hostile], str]:
    def build(made: Hostile) -> str:
        text = f'[submodule "{name or path}"]\n\tpath = {path}\n\turl = {url}\n\tupdate = !touch MARKER\n'
        modules = made.blob(text.replace("MARKER", str(made.marker)))
        return made.commit_tree((FILE, modules, ".gitmodules"), (GITLINK, made.first, path.strip('"') or "m"))

    return build


def _file(name: str, content: str, mode: str = FILE) -> Callable[[Hostile], str]:
    return lambda made: made.commit_tree(
        (mode, made.blob(content.replace("MARKER", str(made.marker))), name),
        (FILE, made.blob("print(1)\n"), "train.py"),
    )


def _folder(name: str, file: str = "config") -> Callable[[Hostile], str]:
    def build(made: Hostile) -> str:
        hook = made.blob(f"[core]\n\tfsmonitor = touch {made.marker}\n\tsshCommand = touch {made.marker}\n")
        return made.commit_tree(("40000", made.tree((FILE, hook, file)), name))

    return build


def _through_a_link(made: Hostile) -> str:
    """A link to a folder outside, and a file "below" it: the folder of that name in another case."""
    outside = made.blob(str(made.marker.parent))
    below = made.tree((FILE, made.blob("planted"), made.marker.name))
    return made.commit_tree((SYMLINK, outside, "a"), ("40000", below, "A"))


def _filters(made: Hostile) -> str:
    attributes = made.blob("* filter=lfs diff=lfs merge=lfs ident eol=crlf working-tree-encoding=UTF-16\n")
    pointer = made.blob(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize {50 * 2**30}\n"
    )
    return made.commit_tree((FILE, attributes, ".gitattributes"), (FILE, pointer, "big.bin"))


CASES: dict[str, Callable[[Hostile], str]] = {
    "submodule of a file": _submodule("m", "file:///etc"),
    "submodule path that ends with CR": _submodule('"m\r"', "https://example.org/x"),
    "submodule url that is an option": _submodule("m", "-u./payload"),
    "submodule url over ext": _submodule("m", "ext::touch% MARKER"),
    "submodule name that climbs": _submodule("m", "https://example.org/x", name="../../hooks"),
    "submodule path that is an option": _submodule("-x", "https://example.org/x"),
    "submodule with a line end in its url": _submodule("m", "https://example.org/%0ahost=evil"),
    "gitmodules that is a link": _file(".gitmodules", "/etc/passwd", SYMLINK),
    "gitattributes that is a link": _file(".gitattributes", "/etc/passwd", SYMLINK),
    "link to a file outside": _file("link", "/etc/passwd", SYMLINK),
    "link that climbs": _file("up", "../../..", SYMLINK),
    "link with the name of a folder": _through_a_link,
    "folder .git": _folder(".git"),
    "folder .GIT": _folder(".GIT"),
    "folder git~1": _folder("git~1"),
    "folder .git with a sign nobody sees": _folder(".g\u200cit"),
    "folder ..": _folder(".."),
    "folder .": _folder("."),
    "bare repository within": _folder("bare", "HEAD"),
    "filters of attributes and a pointer to 50 GB": _filters,
    "name with a terminal's codes": _file("\x1b]0;x\x07\x1b[31m.py", "x"),
    "name with a line end": _file("a\nb", "x"),
    "name with a backslash": _file("..\\..\\a", "x"),
    "name that is an option": _file("--upload-pack=touch MARKER", "x"),
    "name of 250 characters": _file("x" * 250, "x"),
    "hooks in the work tree": _file("post-checkout", "#!/bin/sh\ntouch MARKER\n", "100755"),
    "configuration in the work tree": _file(".gitconfig", "[core]\n\tpager = touch MARKER\n"),
    "mailmap and lfsconfig": _file(".lfsconfig", "[lfs]\n\turl = ext::touch MARKER\n"),
}
REFUSED = {
    "submodule of a file",
    "submodule url that is an option",
    "submodule url over ext",
    "submodule name that climbs",
    "submodule path that is an option",
    "submodule with a line end in its url",
    "gitmodules that is a link",
    "folder .git",
    "folder .GIT",
    "folder git~1",
    "folder .git with a sign nobody sees",
    "folder ..",
    "folder .",
}


@pytest.mark.parametrize("name", CASES)
def test_nothing_of_a_hostile_repository_runs_or_gets_out(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "outside" / "marker"
    marker.parent.mkdir()
    project = Hostile(tmp_path / "project", marker)
    commit = CASES[name](project)
    mirror, work = git.init_bare(tmp_path / "mirror.git"), tmp_path / "work"
    try:
        git.fetch_commit(mirror, str(project.path), commit, ref="refs/heads/main", allow_file=True)
        for _, path in git.tree_diff(mirror, None, commit):
            try:
                git.read_blob(mirror, commit, path, 1024)
            except (git.GitError, git.AddressRefused, TooLarge):
                continue
        with git.ObjectReader(mirror) as reader:
            reader.commit(commit)
        git.checkout(mirror, commit, work)
    except (git.GitError, git.AddressRefused) as error:
        assert error.message.isprintable() or "\n" in error.message
        assert not work.exists()
    else:
        _stays_inside(work)
    assert work.exists() == (name not in REFUSED)
    assert list(marker.parent.iterdir()) == []
    assert not (tmp_path / "mirror.git" / "modules").exists()


def _stays_inside(work: Path) -> None:
    own = work / ".git"
    assert not own.is_symlink()
    assert "fsmonitor" not in (own / "config").read_text()
    assert not list((own / "hooks").glob("*")) if (own / "hooks").exists() else True
    for found in work.rglob("*"):
        assert work in found.parents
        if found.name == "big.bin":
            assert b"git-lfs" in found.read_bytes().replace(b"\0", b"")


@pytest.mark.parametrize("side", ["sender", "executor"])
def test_neither_side_starts_with_an_old_git(side: str, tmp_path: Path) -> None:
    old = tmp_path / "bin" / "git"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho git version 2.39.2\n")
    old.chmod(0o755)
    started = subprocess.run(
        [sys.executable, "-m", "trainforge", side, "start", "--data-dir", str(tmp_path / "data")],
        env={"PATH": f"{old.parent}:/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert started.returncode == 2, started.stderr
    assert "git 2.39.2 is too old" in started.stderr
    assert "install git 2.39.4 or newer" in started.stderr
    assert "Traceback" not in started.stderr


def test_hostile_branches_authors_and_messages_are_words(tmp_path: Path) -> None:
    project = Hostile(tmp_path / "project", tmp_path / "marker")
    words = "\x1b]8;;https://evil.example\x07\x1b[31m<script>\u202ex</script>\n" + "long " * 200_000
    (tmp_path / "message").write_text(words)
    project.git(
        "commit", "--quiet", "--allow-empty", "-F", str(tmp_path / "message"),
        GIT_AUTHOR_NAME="\x1b[31m<b>Ada\u202e</b>", GIT_AUTHOR_EMAIL="a@b",
    )  # fmt: skip
    commit = project.git("rev-parse", "HEAD").stdout.strip()
    heads = project.path / ".git" / "refs" / "heads"
    for name in ("trainforge", "-x", "--upload-pack=x", "a..b", "x.lock"):
        (heads / name).write_text(f"{commit}\n")
    seen = git.ls_remote(str(project.path), allow_file=True)
    assert seen["refs/heads/main"] == commit
    assert not {f"refs/heads/{name}" for name in ("-x", "--upload-pack=x", "a..b", "x.lock")} & set(seen)
    mirror = git.init_bare(tmp_path / "mirror.git")
    git.fetch_commit(mirror, str(project.path), commit, ref="refs/heads/main", allow_file=True)
    with git.ObjectReader(mirror) as reader:
        info = reader.commit(commit)
    for text in (info.subject, info.author):
        assert text.isprintable()
        assert len(text) < 10_000


def test_a_bundle_that_a_server_offers_is_not_fetched(tmp_path: Path) -> None:
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def take() -> None:
            try:
                asked.append(listener.accept()[0].recv(1))
            except OSError:
                return

        thread = threading.Thread(target=take)
        thread.start()
        project = Hostile(tmp_path / "project", tmp_path / "marker")
        for key, value in {
            "uploadpack.advertiseBundleURIs": "true",
            "bundle.version": "1",
            "bundle.mode": "all",
            "bundle.x.uri": f"http://127.0.0.1:{listener.getsockname()[1]}/x.bundle",
        }.items():
            project.git("config", key, value)
        mirror = git.init_bare(tmp_path / "mirror.git")
        git.fetch_commit(mirror, str(project.path), project.first, ref="refs/heads/main", allow_file=True)
        assert git.has_commit(mirror, project.first)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    assert asked == []


def test_a_server_whose_settings_name_programs_has_none_of_them_run(tmp_path: Path) -> None:
    """Partial clones and their promises, alternates: what a mirror would need to have set itself."""
    marker = tmp_path / "marker"
    project = Hostile(tmp_path / "project", marker)
    mirror = git.init_bare(tmp_path / "mirror.git")
    for key, value in {
        "extensions.partialClone": "origin",
        "remote.origin.promisor": "true",
        "remote.origin.uploadpack": f"touch {marker}; git-upload-pack",
        "remote.origin.url": str(project.path),
        "remote.origin.vcs": "ext",
    }.items():
        git.run(["config", key, value], git_dir=mirror)
    with pytest.raises(git.GitError):
        git.read_blob(mirror, project.first, "train.py", 100)  # nothing is fetched for want of it
    assert not marker.exists()
