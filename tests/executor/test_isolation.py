"""How far jobs are kept apart: what is chosen, what comes before their programs, and what that holds back."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import uv

from support.executors import Project, ended, joined, running, settings, story
from support.sender_double import SenderDouble
from trainforge.config.errors import NodeFailed, SettingsError
from trainforge.config.isolation import Level
from trainforge.config.manifest import parse_manifest
from trainforge.config.policy import Policy
from trainforge.executor import (
    abilities,
    cgroups,
    collect,
    environment,
    gpu_devices,
    isolating,
    recipe,
    sandbox,
)
from trainforge.executor.commands import Setup

BARE = "project: {name: t}\ntraining: {script: t.py, launcher: python}\n"
HAS = abilities.Abilities("", "", "", sandbox.System(), cgroups.Parents(1, {}), (), True, ())
LACKS = abilities.Abilities(
    "no bubblewrap", "", "closed", sandbox.System(), cgroups.Parents(1, {}), (), True, ()
)


@pytest.mark.parametrize(
    ("has", "setting", "policy", "around", "chosen"),
    [
        (HAS, "auto", None, "", "sandbox"),
        (HAS, "process", None, "", "process"),
        (HAS, "process", None, "{isolation: sandbox}", "sandbox"),
        (HAS, "process", None, "{network: none}", "sandbox"),
        (HAS, "process", "sandbox", "", "sandbox"),
        (HAS, "sandbox", None, "{isolation: process}", "sandbox"),
        (LACKS, "auto", None, "", "process"),
        (LACKS, "auto", None, "{isolation: sandbox}", None),
        (LACKS, "auto", None, "{network: none}", None),
        (LACKS, "auto", "sandbox", "", None),
    ],
)
def test_the_strictest_wins(
    tmp_path: Path,
    *,
    has: abilities.Abilities,
    setting: Level,
    policy: Level,
    around: str,
    chosen: str | None,
) -> None:
    wanted = parse_manifest(BARE + (f"environment: {around}\n" if around else ""))
    rules = Policy(isolation=policy) if policy else None
    mine = settings(tmp_path / "m", isolation=setting)
    if chosen is None:
        with pytest.raises(NodeFailed, match="cannot isolate a job as sandbox: no bubblewrap"):
            isolating.choose(has, mine, rules, wanted)
    else:
        assert isolating.choose(has, mine, rules, wanted) == chosen


def test_what_a_machine_lacks_is_said(tmp_path: Path) -> None:
    shown = LACKS.shown(settings(tmp_path / "m"))
    assert (shown.usual, shown.levels, shown.own_user) == ("process", ["process"], False)
    assert shown.lacks["sandbox"] == "no bubblewrap"
    assert "the system lets us make none" in shown.lacks["bounds by control groups on cpu, memory, pids"]


def test_an_executor_does_not_start_below_what_it_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # without bubblewrap
    mine = settings(tmp_path / "m", isolation="sandbox")
    with pytest.raises(SettingsError, match="bubblewrap is not installed"):
        abilities.check(mine)
    abilities.check(settings(tmp_path / "other"))


def test_the_sandbox_has_only_what_it_was_given() -> None:
    system = sandbox.System(("/usr", "/etc"), (("/bin", "usr/bin"),), ("/etc/ssh",), ("/etc/shadow",))
    view = sandbox.View(
        Path("/d/n/work"), Path("/d/n/home"), Path("/d/n/tmp"), (Path("/d/n/run/logs"),), (Path("/d/n/run"),),
        ("/dev/nvidia0",), network=False, user=61200,
    )  # fmt: skip
    made = sandbox.argv(system, view)
    text = " ".join(made)
    assert "--unshare-net" in made and "--die-with-parent" in made
    assert text.index("--ro-bind /d/n/run /d/n/run") < text.index("--bind /d/n/run/logs /d/n/run/logs")
    assert "--ro-bind /dev/null /etc/shadow" in text and "--tmpfs /etc/ssh" in text
    assert "--dev-bind-try /dev/nvidia0 /dev/nvidia0" in text
    assert made[made.index("setpriv") :][:5] == ["setpriv", "--reuid", "61200", "--regid", "61200"]
    other = sandbox.argv(system, sandbox.View(Path("/w"), Path("/h"), Path("/t")))
    assert "--unshare-net" not in other and "setpriv" not in other
    assert sandbox.outermost([Path("/a/b"), Path("/a"), Path("/c")]) == (Path("/a"), Path("/c"))


def test_only_the_gpus_of_a_job_are_there(tmp_path: Path) -> None:
    dev, driver = tmp_path / "dev", tmp_path / "driver"
    dev.mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (dev / name).touch()
    for number in (0, 1):
        (driver / f"0000:0{number}").mkdir(parents=True)
        about = f"Model: \t\t A\nGPU UUID: \t GPU-{number}\nDevice Minor: \t {number}\n"
        (driver / f"0000:0{number}" / "information").write_text(about)
    both = (str(dev / "nvidiactl"), str(dev / "nvidia-uvm"))
    assert gpu_devices.devices([], dev, driver) == ()
    assert gpu_devices.devices(["GPU-1"], dev, driver) == (str(dev / "nvidia1"), *both)
    unknown = gpu_devices.devices(["MIG-7"], dev, driver)
    assert unknown == (str(dev / "nvidia0"), str(dev / "nvidia1"), *both)


def test_control_groups_of_both_versions(tmp_path: Path) -> None:
    for name in ("memory/mine", "cpu", "pids"):
        (tmp_path / name).mkdir(parents=True)
    first = cgroups.find("4:memory:/mine\n2:cpu,cpuacct:/\n3:pids:/gone\n0::/\n", tmp_path)
    assert (first.version, set(first.folders)) == (1, {"memory", "cpu"})
    (tmp_path / "system.slice").mkdir()
    (tmp_path / "system.slice" / "cgroup.subtree_control").write_text("memory pids\n")
    second = cgroups.find("0::/system.slice/trainforge.service\n", tmp_path)
    assert (second.version, set(second.folders)) == (2, {"memory", "pids"})
    assert second.folders["memory"] == tmp_path / "system.slice"
    bounds = cgroups.Bounds(memory=5, cpus=1.5, pids=7)
    assert cgroups.settings(2, "cpu", bounds) == {"cpu.max": "150000 100000"}
    assert cgroups.settings(1, "cpu", bounds) == {"cpu.cfs_quota_us": "150000"}
    assert cgroups.settings(2, "memory", bounds) == {"memory.max": "5"}
    assert cgroups.settings(1, "memory", bounds) == {"memory.limit_in_bytes": "5"}


def test_a_memory_hog_ends_at_once_where_groups_can_be_made(double: SenderDouble, tmp_path: Path) -> None:
    chosen, executor = joined(double, tmp_path / "m", max_memory_gb=0.2)
    if "memory" not in abilities.abilities(chosen).parents.folders:
        pytest.skip("this machine lets us make no control groups for memory")
    hog = "hold = []\nwhile True: hold.append(bytearray(50_000_000))\n"
    project = Project(tmp_path, {"trainforge.yaml": BARE.replace("t.py", "train.py"), "train.py": hog})
    with running(chosen):
        (node,) = double.run(project.job(), [executor], project.order())
        assert ended(node)["code"] == "memory_limit", story(node)


def walls(root: Path, more: str = "", **changes: object) -> isolating.Walls:
    folder = root / "m" / "nodes" / "n"
    folder.mkdir(parents=True)
    made = isolating.Walls(folder, settings(root / "m", **changes))
    made.build(parse_manifest(BARE + more), None, [])
    return made


@pytest.mark.parametrize("level", ["process", "sandbox"])
def test_the_packages_are_listed_after_the_jobs_end(tmp_path: Path, level: Level) -> None:
    made = walls(tmp_path, isolation=level)
    made.remove()
    listed = environment.freeze(environment.Environment(sys.executable, "inherit"), os.environ, made)
    assert "accelerate==" in listed
    made.remove()
    assert not (made.folder / "scratch").exists()


def test_two_processes_meet_in_a_sandbox_without_a_network(tmp_path: Path) -> None:
    made = walls(tmp_path, "environment: {network: none}\n")
    work = made.folder / "work"
    work.mkdir()
    made.hand_over([work])
    script = (
        "import os, torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "value = torch.ones(1)\n"
        "dist.all_reduce(value)\n"
        "loader = torch.utils.data.DataLoader(range(4), num_workers=1)\n"
        "assert value.item() == 2 and len(list(loader)) == 4\n"
        "open(f'rank-{os.environ[\"RANK\"]}', 'w').close()\n"
    )
    (work / "train.py").write_text(script)
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py"]
    env = made.environment({"PATH": os.environ["PATH"], "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"})
    done = subprocess.run(
        [*made.before(work, write=[work]), *argv], cwd=work, env=env, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert sorted(path.name for path in work.glob("rank-*")) == ["rank-0", "rank-1"], done.stderr[-3000:]
    made.remove()


EVIL = """\
import os, pathlib, zipfile
def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    said = []
    for place in PLACES:
        try:
            pathlib.Path(place, "planted").write_text("owned")
            said.append(place)
        except OSError:
            pass
    name = "evil-1.0-py3-none-any.whl"
    about = "evil-1.0.dist-info"
    with zipfile.ZipFile(pathlib.Path(wheel_directory, name), "w") as archive:
        archive.writestr("evil.py", f"said = {said!r}\\n")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\\nName: evil\\nVersion: 1.0\\n")
        tags = "Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        archive.writestr(f"{about}/WHEEL", tags)
        archive.writestr(f"{about}/RECORD", "")
    return name
"""


@pytest.mark.parametrize("named", ["requirements: requirements.txt", "lockfile: uv.lock"])
def test_what_is_built_for_a_job_reaches_no_cache_of_others(tmp_path: Path, named: str) -> None:
    """Building a package runs its code, and so does every start of its Python."""
    made = walls(tmp_path)
    work, cache, shared = made.folder / "work", tmp_path / "m" / "cache", tmp_path / "uv"
    (work / "evil").mkdir(parents=True)
    cache.mkdir()
    backend = '[build-system]\nrequires = []\nbuild-backend = "back"\nbackend-path = ["."]\n'
    (work / "evil" / "pyproject.toml").write_text(f'{backend}[project]\nname = "evil"\nversion = "1.0"\n')
    places = [str(tmp_path / "m"), str(cache), str(shared), sys.prefix, "/etc", str(tmp_path)]
    (work / "evil" / "back.py").write_text(f"PLACES = {places!r}\n{EVIL}")
    (work / "requirements.txt").write_text("./evil\n")
    manifest = parse_manifest(BARE.replace("t.py", f"t.py, {named}") + "environment: {mode: isolated}\n")
    setup = Setup(tmp_path / "setup.log", time.monotonic() + 100, lambda: False)
    env = {**os.environ, "UV_OFFLINE": "1", "UV_CACHE_DIR": str(shared)}
    if "uv.lock" in named:
        about = 'name = "main"\nversion = "1.0"\nrequires-python = ">=3.11"\ndependencies = ["evil"]\n'
        (work / "pyproject.toml").write_text(
            f'[project]\n{about}[tool.uv.sources]\nevil = {{path = "evil"}}\n'
        )
        apart = env | {"UV_CACHE_DIR": str(tmp_path / "locking")}
        subprocess.run([uv.find_uv_bin(), "lock", "-q"], cwd=work, env=apart, check=True)
    chosen = environment.prepare(manifest, environment.Place(work, cache, made), setup, env)
    within = made.before(work, read=[work, *chosen.folders])
    said = subprocess.run(
        [*within, chosen.python, "-c", "import evil; print(evil.said)"],
        cwd=work, env=made.environment(env), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.strip() == "[]"
    assert not [place for place in places if Path(place, "planted").exists()]
    assert Path(chosen.python).stat(follow_symlinks=False).st_uid == os.geteuid()
    assert "evil==1.0" in environment.freeze(chosen, env, made) or "evil @" in environment.freeze(
        chosen, env, made
    )
    asked = recipe.Recipe(recipe.Wanted("requirements", work / "requirements.txt"), work, {})
    before = recipe.key_of(asked)
    (work / "evil" / "more.py").write_text("")
    assert recipe.key_of(asked) != before
    made.remove()


def test_what_cannot_be_fetched_is_not_built(tmp_path: Path) -> None:
    made, log = walls(tmp_path), tmp_path / "setup.log"
    work = made.folder / "work"
    work.mkdir()
    (work / "requirements.txt").write_text("trainforge-has-no-such-package\n")
    manifest = parse_manifest(
        BARE.replace("t.py", "t.py, requirements: requirements.txt") + "environment: {mode: isolated}\n"
    )
    env = {**os.environ, "UV_OFFLINE": "1", "UV_CACHE_DIR": str(tmp_path / "uv")}
    with pytest.raises(NodeFailed, match="trainforge-has-no-such-package"):
        environment.prepare(
            manifest,
            environment.Place(work, tmp_path / "m" / "cache", made),
            Setup(log, time.monotonic() + 100, lambda: False),
            env,
        )
    assert "have to be built" not in log.read_text()
    made.remove()


def test_data_of_the_machine_need_its_owners_word(double: SenderDouble, tmp_path: Path) -> None:
    (tmp_path / "private.csv").write_text("1,2")
    (tmp_path / "signals").mkdir()
    (tmp_path / "signals" / "shared.csv").write_text("3,4")
    script = "import os, pathlib\nprint(sorted(os.listdir(os.environ['TRAINFORGE_DATA_DIR'])))\n"
    codes = {}
    chosen, executor = joined(double, tmp_path / "m", max_jobs=2, isolation="sandbox")
    with running(chosen):
        for name in ("private.csv", "signals/shared.csv"):
            text = f"{BARE.replace('t.py', 'train.py')}data: {{url: 'file://{tmp_path}/{name}'}}\n"
            project = Project(
                tmp_path / f"of-{Path(name).stem}", {"trainforge.yaml": text, "train.py": script}
            )
            (node,) = double.run(project.job(), [executor], project.order())
            codes[name] = ended(node)["code"]
    assert codes == {"private.csv": "data_failed", "signals/shared.csv": ""}


def test_a_folder_that_becomes_a_link_while_it_is_collected(tmp_path: Path) -> None:
    output, other, over = tmp_path / "output", tmp_path / "other", threading.Event()
    (output / "folder").mkdir(parents=True)
    other.mkdir()
    (output / "folder" / "name").write_text("mine")
    (other / "name").write_text("bait")

    def swap() -> None:
        while not over.is_set():
            (output / "folder").rename(output / ".folder")
            (output / "folder").symlink_to(other)
            (output / "folder").unlink()
            (output / ".folder").rename(output / "folder")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for number in range(300):
            found = collect.collect(output, tmp_path / "no", [], tmp_path / f"{number}", max_size=1000)
            assert all(copy.read_text() == "mine" for copy in found.files.values())
    finally:
        over.set()
        thread.join()
