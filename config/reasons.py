"""Why a job or node ended otherwise than well: stable codes, their meaning and the next step.

The kind decides, here and nowhere else, what is tried next:

    now        again at once the first time, then after rests: the cause was the moment's
    later      again after a rest, which is longer each time: the cause may pass
    elsewhere  on other executors, and never again on that one: the cause is the machine
    never      not at all: it would fail the same way again, and what is shown are the words of the cause

Whether `now` and `later` are tried at all, and how often, is the manifest's to say (`retry.on`, `retry.max`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["now", "later", "elsewhere", "never"]


@dataclass(frozen=True)
class Reason:
    meaning: str
    hint: str
    kind: Kind = "never"


def kind_of(code: str) -> Kind:
    """What is tried next after a failure of this code; nothing after one that is not known."""
    return REASONS[code].kind if code in REASONS else "never"


REASONS: dict[str, Reason] = {
    "manifest_invalid": Reason("the manifest cannot be used", "mend the lines named and push again"),
    "no_such_commit": Reason(
        "the commit is not reachable from the branch it was announced on", "push the branch again"
    ),
    "checkout_failed": Reason(
        "the commit could not be checked out", "check the repository's URL and access", "later"
    ),
    "environment_failed": Reason(
        "the Python environment could not be prepared", "read the installer's lines in the log"
    ),
    "requirements_unpinned": Reason(
        "environment.strict takes only what has a version and a digest",
        "pin the lines named with `uv pip compile --generate-hashes`, or name a uv.lock",
    ),
    "torch_misfit": Reason(
        "the job's torch cannot use the machine's GPUs",
        "install the build that is named, with environment.torch_backend",
        "elsewhere",
    ),
    "gpu_unavailable": Reason(
        "a GPU that the job was given cannot be used", "look at the GPU named on that machine", "elsewhere"
    ),
    "data_failed": Reason(
        "the training data could not be prepared",
        "check the URL, `sha256`, `ref` and `credentials` under data",
    ),
    "rendezvous_unreachable": Reason(
        "the nodes cannot reach each other", "open the port between the machines named", "later"
    ),
    "script_failed": Reason(
        "the training script ended with an error", "read the traceback in the log", "later"
    ),
    "script_missing": Reason(
        "the training script does not exist at this commit", "commit it, or mend training.script"
    ),
    "wrong_world_size": Reason(
        "fewer processes trained together than were planned", "check the launcher and the script's use of it"
    ),
    "out_of_memory": Reason(
        "the job ran out of memory", "lower the batch size or ask for more memory", "later"
    ),
    "memory_limit": Reason(
        "the job used more memory than the machine's owner allows",
        "ask for as much with resources.memory, or lower the batch size",
        "later",
    ),
    "disk_limit": Reason(
        "the job wrote more to disk than the machine's owner allows",
        "keep fewer checkpoints and files, or ask the machine's owner",
    ),
    "log_limit": Reason(
        "the job printed more than the machine's owner allows", "print less, or ask the machine's owner"
    ),
    "container_failed": Reason(
        "the container could not be made or started", "read the engine's lines in the log", "later"
    ),
    "secret_missing": Reason(
        "a secret that the manifest names is not set", "set it with `trainforge secret set`, then retry"
    ),
    "secret_refused": Reason(
        "a secret is not for this job's branch", "allow the branch with `trainforge secret set --branch`"
    ),
    "timeout_run": Reason("the run took longer than timeout.run", "raise timeout.run or train less"),
    "timeout_setup": Reason("preparing took longer than timeout.setup", "raise timeout.setup", "later"),
    "timeout_queue": Reason("no executors fitted within timeout.queue", "add an executor or ask for less"),
    "no_executor_possible": Reason("no executor could ever fit this job", "ask for less, or add an executor"),
    "lost": Reason("an executor was not heard of any more", "check that machine", "now"),
    "connection_lost": Reason(
        "the processes of the job lost each other", "check the network between the machines named", "now"
    ),
    "peer_failed": Reason("another node of the job failed first", "read the first failing node's log"),
    "stopped": Reason("somebody stopped the job", "`trainforge retry` runs it again"),
    "superseded": Reason("a newer job of its concurrency group took its place", "nothing, the newer runs"),
    "matrix_failed": Reason("another job of its matrix failed first", "read that job's log"),
    "policy_refused": Reason(
        "the executor's own policy forbids this job", "ask the machine's owner", "elsewhere"
    ),
    "clock_skew": Reason(
        "the clocks of sender and executor differ by the seconds named", "set both clocks", "elsewhere"
    ),
    "disk_full": Reason("the disk is full", "free space on the machine named", "elsewhere"),
    "publish_blocked": Reason("the remote refuses the result", "mend what the remote says, then retry"),
    "internal": Reason("TrainForge itself failed", "report it, with the log lines", "later"),
}
