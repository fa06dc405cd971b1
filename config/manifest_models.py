"""The manifest's sections. Attribute names are the YAML keys, sizes are bytes, durations seconds.

`Manifest.inactive` finds the keys that a manifest uses without effect yet. What concerns several keys at
once is checked in `manifest_relations`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from trainforge.config.containers import ImageName, Volume
from trainforge.config.isolation import Level
from trainforge.config.manifest_data import MOST, Data, several
from trainforge.config.manifest_keys import Section, is_later, later, now
from trainforge.config.manifest_types import (
    Arguments,
    Branch,
    CheckpointStore,
    ConfigFile,
    Cron,
    Duration,
    EnvName,
    Glob,
    GpuRequest,
    Gpus,
    Limit,
    Module,
    Name,
    NodeRange,
    Nodes,
    Pattern,
    Plain,
    PythonVersion,
    RelativePath,
    RetryCode,
    SecretName,
    Size,
    Text,
    Texts,
    TorchBackend,
    is_conda,
)

RESULTS_BRANCH = "trainforge-results"


class Project(Section):
    name: Annotated[Name, now("Names the project in lists, results and file names.", "llama-finetune")]
    description: Annotated[Text, now("One line for people.", "Fine-tunes the small model")] = ""


class Training(Section):
    script: Annotated[RelativePath | None, now("The Python file to train with.", "train.py")] = None
    command: Annotated[
        Text | None, now("A shell command instead of a script; it starts its own processes.", "make train")
    ] = None
    module: Annotated[Module | None, now("A Python module instead of a script.", "package.train")] = None
    args: Annotated[
        Arguments,
        now(
            "Arguments of the script or module: a list, or text split as a shell does. "
            "`{{ params.x }}` stands for a parameter.",
            "--epochs 3",
        ),
    ] = []
    params: Annotated[
        dict[str, Plain],
        now(
            "Parameters, given to the training in TRAINFORGE_PARAMS_FILE and adapted to the world size.",
            {"batch_size": 64},
        ),
    ] = {}
    config: Annotated[
        ConfigFile | None,
        now("A JSON or YAML file of the script's own that the parameters are laid over.", "train.yaml"),
    ] = None
    launcher: Annotated[
        Literal["accelerate", "torchrun", "python", "none"],
        now(
            "What starts the processes. `python`: TrainForge itself, one on each machine unless "
            "processes_per_node says more, each with torch's variables. A command starts its own.",
            "torchrun",
        ),
    ] = "accelerate"
    env: Annotated[
        dict[EnvName, Text], now("Environment variables of the training.", {"OMP_NUM_THREADS": "4"})
    ] = {}
    working_dir: Annotated[
        RelativePath, now("Where the training starts, and its paths begin.", "models/small")
    ] = "."
    requirements: Annotated[
        RelativePath | None,
        now(
            "What to install: a requirements file, pyproject.toml, or conda's environment.yml.",
            "requirements.txt",
        ),
    ] = None
    lockfile: Annotated[
        RelativePath | None,
        now("What to install exactly: uv.lock, pylock.toml, or a list with every version.", "uv.lock"),
    ] = None
    extras: Annotated[
        list[Name],
        now("Extras of the repository's own package to install, from pyproject.toml or uv.lock.", ["train"]),
    ] = []
    python: Annotated[PythonVersion | None, now("The Python version that the training needs.", ">=3.11")] = (
        None
    )
    setup: Annotated[
        Texts, now("Shell commands that run once per node before the training.", "python prepare.py")
    ] = []

    @property
    def conda(self) -> bool:
        """Whether only conda can install what it names."""
        return any(is_conda(name) for name in (self.requirements, self.lockfile) if name)

    @model_validator(mode="before")
    @classmethod
    def _command_launches_itself(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("command") is not None:
            return {"launcher": "none", **value}
        return value


class Resources(Section):
    nodes: Annotated[Nodes, now("How many machines train together: a count, or least:most.", "1:4")] = (
        NodeRange()
    )
    processes_per_node: Annotated[
        Annotated[int, Field(ge=1, le=64)] | None,
        now("Training processes on each machine; by default one per GPU, or one.", 2),
    ] = None
    gpu: Annotated[
        Gpus,
        now("GPUs on each machine: a count, or memory of each and count. 0 trains on CPU.", "24GB..:1..8"),
    ] = GpuRequest()
    cpu: Annotated[
        Annotated[float, Field(gt=0, le=4096)] | None, now("CPU cores needed on each machine.", 4)
    ] = None
    memory: Annotated[Size | None, now("Memory needed on each machine.", "16Gi")] = None
    disk: Annotated[Size | None, now("Free disk space needed on each machine.", "50Gi")] = None
    labels: Annotated[dict[Name, Text], now("Labels that an executor must carry.", {"zone": "lab"})] = {}


class Scale(Section):
    batch_size: Annotated[
        Literal["divide", "keep"],
        now(
            "`divide` shares params.batch_size (or per_device_train_batch_size) among the processes.",
            "keep",
        ),
    ] = "divide"
    learning_rate: Annotated[
        Literal["keep", "linear", "sqrt"],
        now(
            "Multiplies params.learning_rate (or lr) by the number of processes, or its square root.",
            "linear",
        ),
    ] = "keep"
    output_dir: Annotated[
        Literal["divert", "keep"],
        now("`divert` gives nodes other than the first a folder rank-N in params.output_dir.", "keep"),
    ] = "divert"


class Distributed(Section):
    scale: Annotated[Scale, now("How parameters follow the number of processes.")] = Scale()
    transport: Annotated[
        Literal["auto", "direct", "relay"], later("How the machines' processes reach each other.", "relay")
    ] = "auto"
    backend: Annotated[
        Literal["auto", "gloo", "nccl"],
        now("torch.distributed's backend, as TRAINFORGE_BACKEND; `auto` leaves it to Accelerate.", "gloo"),
    ] = "auto"
    mixed_precision: Annotated[
        Literal["no", "fp16", "bf16", "fp8"], now("The precision that Accelerate trains in.", "bf16")
    ] = "no"
    port: Annotated[
        Annotated[int, Field(ge=1024, le=65535)] | None,
        now("The port on which the processes meet; by default a free one.", 29500),
    ] = None


class Environment(Section):
    mode: Annotated[
        Literal["auto", "inherit", "isolated", "container"],
        now(
            "`inherit` uses the executor's Python, `isolated` builds one for the job, `auto` inherits where "
            "that suffices. `container`, or an image, uses that of the image.",
            "isolated",
        ),
    ] = "auto"
    strict: Annotated[
        bool,
        now(
            "Whether all that is installed must have an exact version and a digest; what has not is refused "
            "by its line. The executor's own Python then never does.",
            True,
        ),
    ] = False
    torch_backend: Annotated[
        TorchBackend | None,
        now("The build of torch to install: cpu, cu128, or `auto` for what fits the GPU's driver.", "auto"),
    ] = None
    image: Annotated[
        ImageName | None,
        now("The container image to train in; with `@sha256:…` always the same.", "pytorch/pytorch:2.6.0"),
    ] = None
    dockerfile: Annotated[
        RelativePath | None,
        now("Builds the container image, with the working directory as its context.", "Dockerfile"),
    ] = None
    volumes: Annotated[
        Annotated[list[Volume], Field(max_length=32)],
        now("Folders of the machine in the container, as far as its policy allows.", ["/data:/data:ro"]),
    ] = []
    network: Annotated[
        Literal["full", "none"],
        now("`none`: setup commands and training run without a network, in a sandbox, on one node.", "none"),
    ] = "full"
    isolation: Annotated[
        Level,
        now("How far the machine has to keep the job apart at least; it may do more by itself.", "sandbox"),
    ] = "process"

    @property
    def contained(self) -> bool:
        """Whether it trains in a container by its own wish."""
        named = self.image or self.dockerfile or self.volumes
        return "container" in (self.mode, self.isolation) or bool(named)


class Strategy(Section):
    matrix: Annotated[
        dict[Name, Annotated[list[Plain], Field(min_length=1)]],
        now("Values for parameters: each combination becomes a job.", {"learning_rate": [0.1, 0.01]}),
    ] = {}
    include: Annotated[
        list[dict[str, Plain]], now("Combinations to add, of any parameters.", [{"learning_rate": 1.0}])
    ] = []
    exclude: Annotated[
        list[dict[str, Plain]],
        now("Combinations to leave out: those with all of these values.", [{"learning_rate": 0.1}]),
    ] = []
    max_parallel: Annotated[
        Annotated[int, Field(ge=1)] | None,
        now("How many of the jobs run at the same time; by default all.", 2),
    ] = None
    fail_fast: Annotated[bool, now("Whether the first failure stops the other jobs.", False)] = True


class Checkpoint(Section):
    dir: Annotated[
        RelativePath,
        now(
            "Leads to TRAINFORGE_CHECKPOINT_DIR in the working directory, unless such a folder is committed.",
            "runs/checkpoints",
        ),
    ] = "checkpoints"
    every: Annotated[
        Duration | None,
        now(
            "How often the training is to write a checkpoint: TRAINFORGE_CHECKPOINT_EVERY, in seconds, which "
            "`trainforge.training.should_checkpoint()` follows.",
            "10m",
        ),
    ] = None
    keep: Annotated[
        Annotated[int, Field(ge=1, le=1000)],
        now("How many of the newest complete checkpoints the store keeps.", 3),
    ] = 1
    store: Annotated[
        CheckpointStore | None,
        now(
            "Where every machine's part of a checkpoint is kept for others: a folder that all see, or an "
            "fsspec URL. Without it a checkpoint stays on the machine that wrote it.",
            "s3://bucket/checkpoints",
        ),
    ] = None
    resume: Annotated[
        Literal["auto", "never"],
        now("Whether TRAINFORGE_RESUME_FROM names the newest checkpoint to a new attempt.", "never"),
    ] = "auto"


class Retry(Section):
    max: Annotated[Annotated[int, Field(ge=0, le=20)], now("How many times a job is tried again.", 3)] = 1
    on: Annotated[
        list[RetryCode],
        now(
            "What it is tried again after; each time it rests twice as long, at most 10 minutes.",
            ["lost", "out_of_memory"],
        ),
    ] = ["lost", "connection_lost"]
    in_place: Annotated[
        Annotated[int, Field(ge=0, le=100)],
        now(
            "How many times processes that fail are started again within an attempt, by torchrun, from the "
            "newest checkpoint; a range of nodes goes on with those left.",
            3,
        ),
    ] = 0


class Timeout(Section):
    run: Annotated[
        Duration | None, now("How long the training may take; by default without limit.", "12h")
    ] = None
    setup: Annotated[Duration, now("How long checkout, environment and data may take.", "30m")] = 3600.0
    queue: Annotated[
        Duration | None,
        now(
            "How long to wait for executors while no other job is in the way; by default without limit.",
            "1d",
        ),
    ] = None
    grace: Annotated[
        Duration, now("How long a training that is asked to stop may take to do so, an hour at most.", "2m")
    ] = 30.0
    warning: Annotated[
        Duration | None,
        now(
            "How long before a known end the training is warned of it (SIGUSR1, TRAINFORGE_WARNING_FILE); "
            "by default a tenth of the time, 2 minutes at most.",
            "5m",
        ),
    ] = None


class Concurrency(Section):
    group: Annotated[
        Name | None, now("Jobs of one group of a repository run one after the other, by age.", "nightly")
    ] = None
    cancel_in_progress: Annotated[bool, now("Whether a newer job of the group stops the older.", True)] = (
        False
    )


class Metrics(Section):
    primary: Annotated[Text | None, now("The metric that jobs are compared by.", "val_accuracy")] = None
    mode: Annotated[
        Literal["min", "max"],
        now("Whether less or more of `primary` is better; say it when you set `primary`.", "max"),
    ] = "min"
    patterns: Annotated[
        dict[Text, Pattern],
        now(
            "Metrics to read from the output: name, and regular expression whose first group is the number.",
            {"loss": "loss=([0-9.]+)"},
        ),
    ] = {}


class Gate(Section):
    metric: Annotated[Text, now("The metric whose last value is looked at.", "val_accuracy")]
    min: Annotated[
        Limit | None, now("The least that passes: a number, or `base` for the base's value.", 0.95)
    ] = None
    max: Annotated[
        Limit | None, now("The most that passes: a number, or `base` for the base's value.", "base")
    ] = None
    tolerance: Annotated[
        Annotated[float, Field(ge=0)], now("How far beyond the base's value passes still.", 0.01)
    ] = 0.0


class Artifacts(Section):
    paths: Annotated[
        list[Glob],
        now(
            "Files to keep besides TRAINFORGE_OUTPUT_DIR, as globs below the working directory.",
            ["outputs/**"],
        ),
    ] = ["outputs/**"]
    max_size: Annotated[
        Size, now("Larger files leave their size and digest instead of themselves.", "100Mi")
    ] = 100 * 2**20
    store: Annotated[Text | None, later("Where larger files go.", "s3://bucket/models")] = None


class Results(Section):
    branch: Annotated[Branch, now("The branch that results are committed to.", "results")] = RESULTS_BRANCH


class Notify(Section):
    to: Annotated[Text, now("Whom to tell: a name that the sender's settings have under `notify`.", "team")]
    on: Annotated[
        list[Literal["completed", "failed", "cancelled", "recovered", "waiting"]],
        now(
            "What to tell of, each once. `recovered`: it completed after the branch's job before it had "
            "failed. `waiting`: it has waited for machines for long.",
            ["failed", "recovered"],
        ),
    ] = ["completed", "failed"]


class Push(Section):
    branches: Annotated[
        list[Text], now("Globs of the branches whose pushes start jobs; `!` before one excludes.", ["main"])
    ] = ["**"]
    paths: Annotated[
        list[Text],
        now("Globs of files whose change starts a job as the manifest's own change does.", ["src/**"]),
    ] = []
    tags: Annotated[list[Text], now("Globs of the tags whose pushes start jobs.", ["v*"])] = []


class Schedule(Section):
    cron: Annotated[Cron, now("Minute, hour, day, month and weekday, in UTC.", "0 3 * * 1")]


class On(Section):
    push: Annotated[Push, now("Which pushes start jobs.")] = Push()
    schedule: Annotated[list[Schedule], now("Times at which jobs start.", [{"cron": "0 3 * * 1"}])] = []
    pull_request: Annotated[
        Literal["off", "plan", "run"],
        now(
            "What a pull request that changes it does where the repository is connected to GitHub: nothing, "
            "a comment with a plan, or a job as well. A fork's never runs by itself.",
            "run",
        ),
    ] = "plan"


class Manifest(Section):
    """One `trainforge.yaml`. Made by `manifest.parse_manifest` and `manifest.apply_overrides` alone."""

    project: Annotated[Project, now("What this is.", {"name": "my-project"})]
    training: Annotated[Training, now("What to run.", {"script": "train.py"})]
    on: Annotated[On, now("What starts a job.")] = On()
    resources: Annotated[Resources, now("What to run it on.")] = Resources()
    distributed: Annotated[Distributed, now("How the processes work together.")] = Distributed()
    environment: Annotated[Environment, now("What Python the training runs with.")] = Environment()
    data: Annotated[
        list[Data],
        BeforeValidator(several, json_schema_input_type=Data | list[Data] | None),
        Field(max_length=MOST),
        now("Data to fetch before the training. One entry may stand without its list."),
    ] = []
    strategy: Annotated[Strategy, now("Several jobs from one manifest.")] = Strategy()
    checkpoint: Annotated[Checkpoint, now("Where a training can be taken up again.")] = Checkpoint()
    retry: Annotated[Retry, now("When a job is tried again.")] = Retry()
    timeout: Annotated[Timeout, now("How long things may take.")] = Timeout()
    concurrency: Annotated[Concurrency, now("Which jobs may run side by side.")] = Concurrency()
    metrics: Annotated[Metrics, now("What is measured.")] = Metrics()
    gates: Annotated[
        list[Gate], now("Conditions that a good result meets.", [{"metric": "acc", "min": 0.9}])
    ] = []
    artifacts: Annotated[Artifacts, now("Which files are kept.")] = Artifacts()
    results: Annotated[Results, now("Where results go.")] = Results()
    secrets: Annotated[
        list[SecretName], now("Names of secrets that the training sees as variables.", ["HF_TOKEN"])
    ] = []
    notify: Annotated[list[Notify], now("Whom to tell of a job's end.", [{"to": "team"}])] = []
    priority: Annotated[
        Annotated[int, Field(ge=-100, le=100)], now("Jobs of higher priority are placed first.", 10)
    ] = 0
    seed: Annotated[
        Annotated[int, Field(ge=0, lt=2**32)] | None, now("Given to the training as TRAINFORGE_SEED.", 42)
    ] = None

    def inactive(self) -> list[str]:
        """The dotted keys that this manifest uses, and that are accepted but not yet in effect."""
        found = list(_inactive(self, ""))
        if any(data.scheme == "hf" for data in self.data):
            found.append("data.url")
        return sorted(found)


def _inactive(section: Section, prefix: str) -> list[str]:
    found = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if name not in section.model_fields_set or value == field.get_default(call_default_factory=False):
            continue
        if is_later(field):
            found.append(prefix + name)
        elif isinstance(value, Section):
            found.extend(_inactive(value, f"{prefix}{name}."))
    return found
