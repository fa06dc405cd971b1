"""Jobs in containers of real engines: what they find there, what holds them, and what is left afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import engines
from support.executors import Project, Start, ended, forgotten, joined, running, settings, signals, story
from support.scripts import UNTIL_TOLD
from support.sender_double import NodeState, SenderDouble
from support.waiting import wait_for
from trainforge.config import messages as m
from trainforge.config.errors import NodeFailed, SettingsError
from trainforge.config.isolation import LEVELS, Level
from trainforge.config.manifest import parse_manifest
from trainforge.config.policy import Policy
from trainforge.executor import abilities, cgroups, container, containing, endings, isolating, sandbox
from trainforge.executor import engine as engine_cli
from trainforge.executor.supervise import Exit

BARE = (
    "project: {name: t}\ntraining: {script: train.py, launcher: python, env: {PLAIN: told-in-the-manifest}}\n"
)
IMAGE = f"environment: {{image: '{engines.IMAGE}', network: none}}\n"


LOOK = """\
import json, os, pathlib, socket, sys
out = pathlib.Path(os.environ["TRAINFORGE_OUTPUT_DIR"])
with socket.socket() as probe:
    probe.settimeout(2)
    reached = probe.connect_ex(("127.0.0.1", PORT)) == 0

def writes(path):
    try:
        pathlib.Path(path).write_text("x")
    except OSError:
        return False
    return True

status = dict(line.split(":\\t", 1) for line in open("/proc/self/status"))
rank = os.environ["RANK"]
PLACES = ("/x", "/etc/x", "/shown/x", f"{out}/../x", "/home/job/x", f"/tmp/{rank}", "x", f"{out}/x")
about = {
    "uid": os.getuid(), "python": sys.executable, "reached": reached, "home": os.environ["HOME"],
    "writes": [path for path in PLACES if writes(path)], "shown": pathlib.Path("/shown/it").read_text(),
    "sees": [path for path in SEEN if os.path.exists(path)],
    "processes": sum(name.isdigit() for name in os.listdir("/proc")),
    "caps": status["CapEff"] + status["CapBnd"], "new": status["NoNewPrivs"], "seccomp": status["Seccomp"],
    "plain": os.environ["PLAIN"], "data": os.listdir(os.environ["TRAINFORGE_DATA_DIR"]),
    "world": os.environ["WORLD_SIZE"], "names": [name for name in os.environ if "DOCKER" in name],
}
(out / f"about-{rank}.json").write_text(json.dumps(about))
print('PROGRESS: {"loss": 0.5}', flush=True)
"""
HOG = "hold = []\nwhile True: hold.append(bytearray(30_000_000))\n"
BOMB = """\
import os, time
children = 0
try:
    while children < 500:
        if os.fork() == 0:
            time.sleep(600)
        children += 1
except OSError as error:
    print("held at", children, error.strerror, flush=True)
"""
STUBBORN = (
    "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('begun', flush=True)\ntime.sleep(600)\n"
)
BUILT = (
    "from pathlib import Path\nprint(Path('/opt/said').read_text(), Path('made').read_text(), flush=True)\n"
)
DOCKERFILE = f"FROM {engines.IMAGE}\nENV MADE=here\nRUN echo built > /opt-said\nCOPY said /opt/said\n"


def jobs(tmp_path: Path, seen: list[str], port: int) -> dict[str, Project]:
    look = LOOK.replace("SEEN", repr(seen)).replace("PORT", str(port))
    scripts = {"hog": HOG, "bomb": BOMB, "stubborn": STUBBORN}
    made = {
        name: Project(tmp_path / name, {"trainforge.yaml": BARE + IMAGE, "train.py": script})
        for name, script in scripts.items()
    }
    for name, folder in (("look", tmp_path / "shown"), ("refused", tmp_path)):
        around = IMAGE.replace("}", f", volumes: ['{folder}:/shown']}}")
        made[name] = Project(tmp_path / name, {"trainforge.yaml": BARE + around, "train.py": look})
    set_up = BARE.replace("train.py,", "train.py, setup: ['echo $MADE, $PLAIN > made'],")
    built = {"trainforge.yaml": set_up + "environment: {dockerfile: Dockerfile, network: none}\n"}
    built |= {"Dockerfile": DOCKERFILE, "said": "hello", "train.py": BUILT}
    for name in ("built", "again"):
        made[name] = Project(tmp_path / name, built)
    return made


def test_jobs_in_containers(double: SenderDouble, tmp_path: Path, engine: engines.TestEngine) -> None:
    (tmp_path / "bait").write_text("x")
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "it").write_text("data")
    rules = tmp_path / "policy.yaml"
    rules.write_text(f"volumes: ['{tmp_path}/shown']\n")
    limits = {"max_memory_gb": 0.3, "max_processes": 50, "max_jobs": 6, "policy_file": rules}
    chosen, executor = joined(double, tmp_path / "m", container_engine=engine.kind, **limits)
    seen = [f"{tmp_path}/bait", f"{chosen.data_dir}/key.json", "/var/run/docker.sock", "/root/.ssh"]
    made = jobs(tmp_path, seen, double.port)
    with running(chosen):

        def run(name: str, processes: int = 1) -> NodeState:
            order = made[name].order(processes_per_node=processes)
            (node,) = double.run(made[name].job(), [executor], order)
            return node

        names = ("look", "hog", "bomb", "stubborn", "refused", "built")
        nodes = {name: run(name, 2 if name == "look" else 1) for name in names}
        deaf = nodes["stubborn"]
        wait_for("it to begin", lambda: "begun" in deaf.text(0), 100, lambda: story(deaf))
        double.give(deaf, m.StopOrder(code="stopped", reason="enough", grace_s=0.2))
        ends = {name: ended(node, 100) for name, node in nodes.items()}
        codes = {name: end["code"] for name, end in ends.items()}
        told = "\n".join(map(story, nodes.values()))
        assert codes == {
            "look": "",
            "hog": "memory_limit",
            "bomb": "",
            "stubborn": "stopped",
            "built": "",
            "refused": "policy_refused",
        }, told
        for name in ("look", "hog"):
            assert ends[name]["cpu_s"] > 0 and ends[name]["peak_memory_bytes"] > 10**6
        assert "held at" in nodes["bomb"].text(0), story(nodes["bomb"])
        assert nodes["built"].text(0).strip() == "hello here, told-in-the-manifest"
        nodes["again"] = run("again")
        assert ended(nodes["again"])["code"] == ""
        assert "is kept from before" in nodes["again"].text(-1)
        forgotten(chosen, nodes["look"])
    _check_inside(made["look"].results(), engine)


def _check_inside(results: dict[str, str], engine: engines.TestEngine) -> None:
    named = {Path(path).name: text for path, text in results.items()}
    for rank in ("0", "1"):
        about = json.loads(named[f"about-{rank}.json"])
        assert about["uid"] >= abilities.USERS[0] and about["home"] == "/home/job"
        assert [Path(path).name for path in about["writes"]] == ["x", rank, "x", "x"]
        assert not about["reached"] and about["sees"] == [] and about["names"] == []
        assert about["processes"] <= 3 and about["world"] == "2"
        assert set(about["caps"]) <= set("0\n") and (about["new"], about["seccomp"]) == ("1\n", "2\n")
        assert about["plain"] == "told-in-the-manifest" and about["shown"] == "data"
    around = json.loads(named["environment.json"])
    image = around["isolation"]["image"]
    assert around["isolation"]["level"] == "container" and image["engine"].startswith(engine.kind)
    assert image["id"].removeprefix("sha256:") in engine.run(
        "image", "inspect", engines.IMAGE, "--format", "{{.Id}}"
    )


def test_a_training_in_a_container_survives_its_executor(
    double: SenderDouble, tmp_path: Path, engine: engines.TestEngine, start: Start
) -> None:
    go_on = signals(tmp_path) / "go-on"
    text = BARE + IMAGE.replace("network: none", "isolation: container")
    files = {"trainforge.yaml": text, "train.py": UNTIL_TOLD.format(go_on=str(go_on))}
    project = Project(tmp_path, files)
    chosen, executor = joined(double, tmp_path / "laptop", container_engine=engine.kind)
    program = start(chosen)
    (node,) = double.run(project.job(), [executor], project.order())
    wait_for("training", lambda: "training has begun" in node.text(0), 100, lambda: story(node))
    _check_records(engine, chosen.data_dir / "nodes" / str(node.key))
    program.kill()
    program.wait()
    start(chosen)
    go_on.touch()
    forgotten(chosen, node)
    assert node.last("ended")["code"] == "", story(node)
    assert len(node.data("started")) == 1 and node.text(0).splitlines().count("training is over") == 1
    assert "trained" in "".join(project.results().values())


def _check_records(engine: engines.TestEngine, folder: Path) -> None:
    """What the engine knows of it, and what anybody on the machine sees."""
    (about,) = json.loads(engine.run("inspect", *engine.run("ps", "-q").split()))
    host = about["HostConfig"]
    assert host["ReadonlyRootfs"] and not host["Privileged"] and host["PidsLimit"] == 4096
    assert any("no-new-privileges" in option for option in host["SecurityOpt"])
    assert about["Config"]["User"].partition(":")[0].isdigit()
    shown = {mount["Destination"] for mount in about["Mounts"]}
    assert str(folder / "output") in shown and not any("sock" in path for path in shown)
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    noted = "".join(path.read_text() for path in (folder / "containers").iterdir())
    for place in (json.dumps(about), listed, noted):
        assert "told-in-the-manifest" not in place


@pytest.fixture
def gpus() -> Iterator[tuple[str, ...]]:
    """Two that the Container Device Interface knows: what stands for them is a device of every machine."""
    folder, names = engine_cli.CDI[1], tuple(f"GPU-{os.getpid()}-{number}" for number in (1, 2))
    nodes = [{"path": f"/dev/gpu{number}", "hostPath": "/dev/null"} for number in (1, 2)]
    devices = [
        {"name": name, "containerEdits": {"deviceNodes": [node]}}
        for name, node in zip(names, nodes, strict=True)
    ]
    folder.mkdir(exist_ok=True)
    note = folder / f"trainforge-{os.getpid()}.json"
    note.write_text(json.dumps({"cdiVersion": "0.3.0", "kind": "nvidia.com/gpu", "devices": devices}))
    yield names
    note.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def test_gpus_are_asked_of_the_engine(
    engine: engines.TestEngine, tmp_path: Path, gpus: tuple[str, ...]
) -> None:
    found = engine_cli.find("docker" if engine.kind == "docker" else "podman", os.environ)
    name = f"trainforge-gpus-{os.getpid()}"
    view = container.View(name, "n", tmp_path, tmp_path, os.geteuid(), gpus=gpus[:1])
    look = ["python3", "-c", "import os; print([name for name in os.listdir('/dev') if 'gpu' in name])"]
    made = container.arguments(found, engines.IMAGE, view, look)
    if engine.kind == "podman":
        assert found.gpus and engine.run(*made) == "['gpu1']"
        return
    made.remove("--rm")
    engine.run("create", *made[1:])
    (about,) = json.loads(engine.run("inspect", name))
    (asked,) = about["HostConfig"]["DeviceRequests"]
    assert (asked["DeviceIDs"], asked["Capabilities"]) == (list(gpus[:1]), [["gpu"]])
    engine.run("rm", name)


DEAF = """\
import os, signal, time
signal.signal(15, lambda *_: os._exit(7))
print('up', flush=True)
time.sleep(100)
"""
UNLIKE = "import os, sys, time; time.sleep(100 * int(os.environ['N'])); sys.exit(3)"


@pytest.mark.parametrize(
    ("script", "starts", "sent", "code"),
    [
        ("import os; raise SystemExit(os.environ['N'] + os.environ['A'] != '4b')", [{"N": "4"}], 0, 0),
        ("import os; os.kill(os.getpid(), 9)", [{}], 0, 137),
        (UNLIKE, [{"N": "0"}, {"N": "1"}], 0, 3),
        (DEAF, [{}], signal.SIGTERM, 7),
    ],
)
def test_the_first_process_of_a_container(
    tmp_path: Path, script: str, starts: list[dict[str, str]], sent: int, code: int
) -> None:
    argv, note = [sys.executable, "-I", "-S", "-c", script], tmp_path / "note"
    told = {"argv": argv, "env": {"A": "b"}, "starts": starts, "note": str(note)}
    program = [sys.executable, "-I", "-S", container.INIT]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(told).encode() + b"\n")
        process.stdin.flush()
        if sent:
            assert process.stdout.readline() == b"up\n"
            process.send_signal(sent)
        assert process.wait(30) == code
    assert json.loads(note.read_text())["cpu_s"] > 0


def test_what_is_never_shown_to_a_container(tmp_path: Path) -> None:
    data_dir = tmp_path / "executor"
    for folder in (data_dir, tmp_path / "data", tmp_path / "plugs"):
        folder.mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind(str(tmp_path / "plugs" / "docker.sock"))
    own = [tmp_path, data_dir, data_dir / "nodes", tmp_path / "link", tmp_path / "no", tmp_path / "plugs"]
    for path in [*own, *map(Path, ("/", "/proc/1", "/sys", "/dev", "/run", "/var/run", "/var", "/run/user"))]:
        assert containing.forbidden(path, data_dir), path
    assert containing.forbidden(tmp_path / "data", data_dir) == ""


def test_an_engine_that_cannot_start_it_is_named() -> None:
    words = endings.Words("docker: Error response from daemon: could not select device driver.", {})
    said = endings.ended(
        Exit(125), words, stop=None, ranks=[], processes=1, world_size=1, run_timeout=None, contained=True
    )
    assert said.code == "container_failed" and "could not select device driver" in said.reason


ENGINE = engine_cli.Engine("docker", "docker")
NO_SANDBOX = abilities.Abilities(
    "no bubblewrap", "", "", sandbox.System(), cgroups.Parents(1, {}), (), True, (), "", ENGINE
)
ABLE = dataclasses.replace(NO_SANDBOX, no_sandbox="")
UNABLE = dataclasses.replace(ABLE, no_container="docker is not installed", engine=None)


@pytest.mark.parametrize(
    ("has", "around", "policy", "usual", "chosen"),
    [
        (ABLE, "{image: x}", None, "", "container"),
        (ABLE, "{dockerfile: Dockerfile, isolation: process}", None, "", "container"),
        (ABLE, "{volumes: [/data]}", None, "x", "container"),
        (ABLE, "{mode: container}", None, "", "names no image"),
        (ABLE, "{}", "container", "", "names no image"),
        (ABLE, "{}", "container", "x", "container"),
        (ABLE, "{}", None, "x", "sandbox"),
        (NO_SANDBOX, "{network: none}", None, "x", "container"),
        (NO_SANDBOX, "{network: none}", None, "", "names no image"),
        (NO_SANDBOX, "{network: none, image: x}", None, "", "container"),
        (UNABLE, "{image: x}", None, "x", "docker is not installed"),
    ],
)
def test_who_is_in_a_container(
    tmp_path: Path, *, has: abilities.Abilities, around: str, policy: Level | None, usual: str, chosen: str
) -> None:
    mine = settings(tmp_path / "m", container_image=usual, container_engine="docker")
    rules = Policy(isolation=policy) if policy else None
    wanted = parse_manifest(f"{BARE}environment: {around}\n")
    if chosen in LEVELS:
        assert isolating.choose(has, mine, rules, wanted) == chosen
    else:
        with pytest.raises(NodeFailed, match=chosen):
            isolating.choose(has, mine, rules, wanted)


def test_a_machine_without_an_engine_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    has = abilities.abilities(settings(tmp_path / "m", container_engine="auto"))
    shown = has.shown(settings(tmp_path / "m", container_engine="auto"))
    assert "container" not in shown.levels and (shown.engine, shown.gpus) == ("", False)
    assert shown.lacks["container"] == "docker is not installed; podman is not installed"
    strict = settings(tmp_path / "n", isolation="container", container_engine="auto", container_image="x")
    with pytest.raises(SettingsError, match="is not installed"):
        abilities.check(strict)
    with pytest.raises(SettingsError, match="needs container_image"):
        abilities.check(strict.model_copy(update={"container_image": ""}))
