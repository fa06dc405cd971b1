"""What decides an environment: which files count, what is refused, and what the installers are told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trainforge.config.errors import NodeFailed
from trainforge.config.manifest import parse_manifest
from trainforge.executor import installing, recipe
from trainforge.executor.pinned import check_strict
from trainforge.executor.recipe import Interpreter, Recipe, Wanted

DIGEST = "--hash=sha256:" + "a" * 64


def files(root: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def of(root: Path, training: str) -> Wanted:
    manifest = parse_manifest(f"project: {{name: t}}\ntraining: {{script: t.py, {training}}}\n")
    return recipe.wanted_of(manifest, root)


def requirements(root: Path, **changes: object) -> Recipe:
    plain = Recipe(Wanted("requirements", root / "r.txt"), root, {})
    return replace(plain, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("training", "kind", "file"),
    [
        ("requirements: r.txt", "requirements", "r.txt"),
        ("requirements: pyproject.toml, extras: [train]", "requirements", "pyproject.toml"),
        ("extras: [train]", "requirements", "pyproject.toml"),
        ("lockfile: uv.lock, extras: [train]", "project", "uv.lock"),
        ("lockfile: pylock.toml", "exact", "pylock.toml"),
        ("lockfile: r.txt", "exact", "r.txt"),
        ("requirements: environment.yml", "conda", "environment.yml"),
        ("lockfile: conda-linux-64.lock", "conda", "conda-linux-64.lock"),
    ],
)
def test_the_file_says_what_it_is(tmp_path: Path, training: str, kind: str, file: str) -> None:
    files(tmp_path, r_txt="", pyproject_toml="", uv_lock="", pylock_toml="", environment_yml="")
    (tmp_path / "conda-linux-64.lock").write_text("")
    found = of(tmp_path, training)
    assert (found.kind, found.file) == (kind, tmp_path / file)


def test_extras_come_beside_a_requirements_file(tmp_path: Path) -> None:
    files(tmp_path, r_txt="", pyproject_toml="")
    found = of(tmp_path, "requirements: r.txt, extras: [train]")
    said = installing.uv_arguments(Recipe(found, tmp_path, {}), "python")
    assert said[-6:] == ["--extra", "train", "-r", str(tmp_path / "r.txt"), "-r", str(found.project)]


def test_uv_lock_needs_its_project(tmp_path: Path) -> None:
    with pytest.raises(NodeFailed, match=r"uv\.lock goes with"):
        of(files(tmp_path, uv_lock=""), "lockfile: uv.lock")


OTHER: list[tuple[str, Callable[[Recipe], Recipe]]] = [
    ("Python", lambda one: replace(one, interpreter=Interpreter("/usr/bin/python3", "3.12.1"))),
    ("index", lambda one: replace(one, env={"UV_INDEX_URL": "https://example.org/simple"})),
    ("pip's index", lambda one: replace(one, env={"PIP_EXTRA_INDEX_URL": "https://example.org/simple"})),
    ("strict", lambda one: replace(one, strict=True)),
    ("torch", lambda one: replace(one, backend="cu128")),
    ("kind", lambda one: replace(one, wanted=replace(one.wanted, kind="exact"))),
    ("extras", lambda one: replace(one, wanted=replace(one.wanted, extras=("train",)))),
    ("requirements", lambda one: _write(one, "r.txt", "-r base.txt\n-c limits.txt\n./local\n#\n")),
    ("included", lambda one: _write(one, "base.txt", "numpy==2\n")),
    ("constraints", lambda one: _write(one, "limits.txt", "numpy<3\n")),
    ("a package of the commit", lambda one: _write(one, "local/module.py", "x = 2\n")),
]


def _write(one: Recipe, name: str, text: str) -> Recipe:
    (one.cwd / name).write_text(text)
    return one


@pytest.mark.parametrize("change", [change for _, change in OTHER], ids=[name for name, _ in OTHER])
def test_the_key_follows_whatever_decides(tmp_path: Path, change: Callable[[Recipe], Recipe]) -> None:
    files(tmp_path, r_txt="-r base.txt\n-c limits.txt\n./local\n", base_txt="numpy\n", limits_txt="")
    files(tmp_path, local__module_py="x = 1\n")
    one = requirements(tmp_path)
    before = recipe.key_of(one)
    assert recipe.key_of(one) == before
    assert recipe.key_of(change(one)) != before


def test_how_something_is_fetched_and_by_whom_decides_nothing(tmp_path: Path) -> None:
    one = requirements(files(tmp_path, r_txt="numpy\n"), env={"UV_INDEX_URL": "https://a:b@example.org/x"})
    other = {
        "UV_INDEX_URL": "https://c:d@example.org/x",
        "UV_CACHE_DIR": "/x",
        "UV_OFFLINE": "1",
        "HOME": "/h",
    }
    assert recipe.key_of(replace(one, env=other)) == recipe.key_of(one)


def test_what_is_fetched_by_its_address_is_never_taken_for_known(tmp_path: Path) -> None:
    one = requirements(files(tmp_path, r_txt="-r https://example.org/r.txt\n"))
    assert recipe.key_of(one) != recipe.key_of(one)


@pytest.mark.parametrize("line", ["-r ../outside.txt", "-c /etc/passwd", "-e /", "../wheel.whl"])
def test_nothing_is_read_beside_the_commit(tmp_path: Path, line: str) -> None:
    (tmp_path / "outside.txt").write_text("")
    (tmp_path / "wheel.whl").write_text("")
    one = requirements(files(tmp_path / "work", r_txt=f"{line}\n"))
    with pytest.raises(NodeFailed, match="leads out of the commit") as failed:
        recipe.key_of(one)
    assert failed.value.code == "environment_failed"


def test_an_include_beside_the_working_folder_is_the_commits(tmp_path: Path) -> None:
    files(tmp_path, base_txt="numpy\n", models__r_txt="-r ../base.txt\n")
    recipe.key_of(requirements(tmp_path / "models", work=tmp_path))


# --- strict ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("numpy>=2\n", "r.txt:1: numpy>=2 has no exact version"),
        ("# why\n\nnumpy==2.1.0\n", "r.txt:3: numpy==2.1.0 has no --hash=sha256:…"),
        (f"numpy==2.1.0 {DIGEST}\nx==1.* {DIGEST}\n", "r.txt:2: x==1.* has no exact version"),
        (f"numpy==2 \\\n    {DIGEST} \\\n    {DIGEST}\n-e .\n", "r.txt:4: -e . has no exact version"),
        ("-r base.txt\n", "base.txt:2: torch has no exact version"),
        ("-r https://example.org/r.txt\n", "is fetched from elsewhere"),
        ("x @ https://example.org/x.whl\n", "r.txt:1: x @ https://example.org/x.whl has no --hash"),
    ],
)
def test_strict_names_each_line_that_is_not_held_to_a_digest(tmp_path: Path, text: str, said: str) -> None:
    files(tmp_path, r_txt=text, base_txt="# base\ntorch\n")
    with pytest.raises(NodeFailed) as failed:
        check_strict(requirements(tmp_path, strict=True))
    assert failed.value.code == "requirements_unpinned"
    assert said in failed.value.message


@pytest.mark.parametrize(
    ("training", "name", "text"),
    [
        ("lockfile: uv.lock", "uv.lock", ""),
        ("lockfile: pylock.toml", "pylock.toml", ""),
        ("requirements: r.txt", "r.txt", f"--index-url https://x/y\nnumpy==2.1 {DIGEST}\n-c limits.txt\n"),
        ("requirements: r.txt", "r.txt", f"numpy[extra]==2.1 ; python_version > '3' {DIGEST}\n"),
        ("lockfile: conda-64.lock", "conda-64.lock", "# x\n@EXPLICIT\nhttps://x/a.conda#0123\n"),
    ],
)
def test_strict_takes_what_is_held_to_a_digest(tmp_path: Path, training: str, name: str, text: str) -> None:
    files(tmp_path, pyproject_toml="", limits_txt="numpy<3\n")
    (tmp_path / name).write_text(text)
    check_strict(Recipe(of(tmp_path, training), tmp_path, {}, strict=True))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("environment.yml", "dependencies: [python]\n", "environment.yml:1: is no explicit list"),
        ("conda-64.lock", "@EXPLICIT\nhttps://x/a.conda\n", "conda-64.lock:2: https://x/a.conda has no dig"),
        ("pyproject.toml", "", "pyproject.toml:1: names no digests"),
    ],
)
def test_strict_says_what_to_write_instead(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    wanted = of(tmp_path, f"requirements: {name}")
    with pytest.raises(NodeFailed) as failed:
        check_strict(Recipe(wanted, tmp_path, {}, strict=True))
    assert said in failed.value.message


# --- what installers are told ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "changes", "said"),
    [
        (Wanted("requirements", Path("r.txt")), {}, "pip install --no-config --python P -r r.txt"),
        (
            Wanted("requirements", Path("r.txt")),
            {"strict": True, "backend": "cu128"},
            "pip install --no-config --python P --torch-backend cu128 --require-hashes -r r.txt",
        ),
        (
            Wanted("exact", Path("pylock.toml")),
            {"strict": True},
            "pip sync --no-config --python P pylock.toml",
        ),
        (
            Wanted("project", Path("uv.lock"), ("train",)),
            {"strict": True},
            "sync --no-config --frozen --inexact --no-dev --no-editable --python P --extra train",
        ),
    ],
)
def test_uv_is_told(wanted: Wanted, changes: dict[str, bool | str], said: str) -> None:
    one = replace(Recipe(wanted, Path(), {}), **changes)  # type: ignore[arg-type]
    assert " ".join(installing.uv_arguments(one, "P")) == said
