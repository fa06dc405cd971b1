"""The shape of the project: who may import whom, and what the wheel holds."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("config", "hooks", "sender", "executor")
MAY_IMPORT = {
    "config": {"config"},
    "hooks": {"config", "hooks"},
    "sender": {"config", "hooks", "sender"},
    "executor": {"config", "hooks", "executor"},
}


def _modules(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def _imported(path: Path) -> set[str]:
    """Full names of what a module imports of ours, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write trainforge.x"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "trainforge"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_the_architecture_allows(room: str) -> None:
    modules = _modules(room)
    assert modules
    for path in modules:
        for name in _imported(path):
            if name in {"trainforge", "trainforge.__version__"}:
                continue
            target = name.split(".")[1]
            assert target in MAY_IMPORT[room], f"{path.relative_to(ROOT)} imports {name}"


def test_the_import_table_is_the_one_in_the_documentation() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    for room, allowed in MAY_IMPORT.items():
        others = (
            ", ".join(name for name in ("config", "hooks") if name in allowed and name != room) or "nothing"
        )
        assert f"| `{room}/` |" in page
        row = next(line for line in page.splitlines() if line.startswith(f"| `{room}/` |"))
        assert row.rstrip().endswith(f"| {others} |"), row


def test_sql_is_spoken_in_the_rooms_of_the_database_alone() -> None:
    speakers = {"schema", "database", "queries", "people", "migrate"}
    for path in _modules("sender"):
        if path.stem in speakers or path.stem.startswith("store") or "migrations" in path.parts:
            continue
        assert ".execute(" not in path.read_text(), f"{path.name} executes SQL"


def test_no_two_modules_import_each_other() -> None:
    edges: dict[str, set[str]] = {}
    known = {f"trainforge.{room}.{path.stem}" for room in ROOMS for path in _modules(room)}
    for room in ROOMS:
        for path in _modules(room):
            names = _module_level(path)
            targets = {n for n in names if n in known} | {n.rsplit(".", 1)[0] for n in names}
            edges[f"trainforge.{room}.{path.stem}"] = targets & known
    _assert_acyclic(edges)


def _module_level(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _assert_acyclic(edges: dict[str, set[str]]) -> None:
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for target in sorted(edges.get(name, set()) - {name}):
                visit(target, (*trail, name))
            done.add(name)

    for name in sorted(edges):
        visit(name, ())


def test_the_wheel_holds_exactly_the_tracked_files(tmp_path: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "trainforge", *ROOMS], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    links = {f"trainforge/{room}" for room in ROOMS}
    expected = {
        path if path.startswith("trainforge/") else f"trainforge/{path}"
        for path in tracked
        if path not in links
    }
    # A copy of the tracked files, so that what lies about in the work tree cannot hide a missing entry.
    source = tmp_path / "source"
    archive = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    for name in filter(None, archive.split("\0")):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        origin = ROOT / name
        if origin.is_symlink():
            target.symlink_to(origin.readlink())
        elif origin.exists():
            target.write_bytes(origin.read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(tmp_path), str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert inside == expected
