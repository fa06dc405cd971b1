"""What a node does before it is ready: checkout, environment, data. Each may be done again at no harm."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from trainforge.config.errors import NodeFailed
from trainforge.config.manifest import Manifest, apply_overrides, parse_manifest
from trainforge.config.messages import GitCredential, NodeKey, NodePhase, RunOrder
from trainforge.executor import (
    budget,
    checkout,
    containing,
    data,
    environment,
    images,
    launch,
    publishing,
    supervisor,
)
from trainforge.executor.capabilities import hardware
from trainforge.executor.commands import Setup
from trainforge.executor.gpus import driver_of
from trainforge.executor.isolating import Walls
from trainforge.executor.job_secrets import JobSecrets
from trainforge.executor.services import Services
from trainforge.hooks.addresses import AddressRefused, repository_id

MANIFEST = "manifest.yaml"


@dataclass(frozen=True)
class Prepared:
    manifest: Manifest
    python: str
    data: Path
    reads: tuple[Path, ...] = ()  # what its Python needs to be seen besides


@dataclass(frozen=True)
class Preparation:
    """One node's; `phase` is told of each step as it begins."""

    key: NodeKey
    folder: Path
    order: RunOrder
    services: Services
    secrets: JobSecrets
    walls: Walls
    phase: Callable[[NodePhase, str], None]

    def run(self, setup: Setup) -> Prepared:
        if self.services.acceptance.ask:
            self.phase("checkout", self.services.acceptance.asking)
            self.services.acceptance.settle(self.folder, self.order, self.key, setup)
        begun = time.monotonic()
        setup.check()
        manifest = self._checkout(setup)
        setup.deadline = begun + manifest.timeout.setup
        setup.check()
        self.secrets.names = manifest.secrets
        self.secrets.require(setup.check)
        self.phase("environment", "")
        chosen = self._environment(manifest, setup)
        self.phase("data", "")
        shown = data.prepare(manifest, self._for_data(setup))
        setup.check()
        return Prepared(manifest, chosen.python, shown.folder, (*chosen.folders, *shown.reads))

    def _for_data(self, setup: Setup) -> data.Node:
        services, repository = self.services, self.order.repository
        policy = services.acceptance.policy

        def own(url: str) -> GitCredential | None:
            with contextlib.suppress(AddressRefused):
                if repository_id(url) == repository.id:
                    return services.credential(self.key)
            return None

        return data.Node(
            folder=self.folder,
            cache=services.data_dir / "cache" / "data",
            setup=setup,
            scope=repository.id,
            secrets=self.secrets.values,
            own=own,
            files=services.settings.shared_folders if self.walls.apart else None,
            allow_private=policy is None or policy.reaches_private,
            allow_file=services.allow_file,
            most=services.settings.max_repository,
            tell=lambda detail: self.phase("data", detail[:500]),
            room=services.keeper.make_room,
        )

    def kept_manifest(self) -> Manifest:
        """The manifest as it was checked out."""
        return self._parse((self.folder / MANIFEST).read_bytes())

    def working_folder(self, manifest: Manifest) -> Path:
        work = (self.folder / "work").resolve()
        cwd = (work / manifest.training.working_dir).resolve()
        if not cwd.is_dir() or not cwd.is_relative_to(work):
            raise NodeFailed(
                f"training.working_dir: there is no folder {manifest.training.working_dir} in this commit",
                code="script_missing",
            )
        return cwd

    def _checkout(self, setup: Setup) -> Manifest:
        self.phase("checkout", "")
        self._lease_mirrors(setup)
        mirror = checkout.fetch(
            self.services.data_dir / "mirrors",
            self.order,
            setup,
            lambda: self.services.credential(self.key),
            lambda detail: self.phase("checkout", detail),
            allow_file=self.services.allow_file,
            most=self.services.settings.max_repository,
        )
        content = checkout.read_manifest(mirror, self.order)
        (self.folder / MANIFEST).write_bytes(content)
        manifest = self._parse(content)
        self.services.acceptance.check_manifest(manifest, self.order)
        self.walls.build(manifest, self.services.acceptance.policy, self.order.gpus, nodes=self.order.nodes)
        checkout.work_tree(mirror, self.order, self.folder / "work")
        script = manifest.training.script
        if script is not None and not (self.working_folder(manifest) / script).is_file():
            raise NodeFailed(
                f"training.script: there is no file {script} in this commit", code="script_missing"
            )
        return manifest

    def _lease_mirrors(self, setup: Setup) -> None:
        data_dir, repository = self.services.data_dir, self.order.repository
        results = publishing.mirror_path(data_dir, repository.url)
        for mirror in (checkout.mirror_path(data_dir / "mirrors", repository.id), results):
            with budget.locked(mirror, setup.check):
                setup.lease(mirror)

    def _parse(self, content: bytes) -> Manifest:
        manifest = apply_overrides(parse_manifest(content, self.order.manifest_path), self.order.overrides)
        if self.services.environment_mode != "auto" and not manifest.environment.contained:
            chosen = manifest.environment.model_copy(update={"mode": self.services.environment_mode})
            manifest = manifest.model_copy(update={"environment": chosen})
        return manifest

    def _environment(self, manifest: Manifest, setup: Setup) -> environment.Environment:
        done = self.folder / "environment.json"
        if done.exists():
            kept = environment.Environment(**json.loads(done.read_text()))
            if kept.mode == "container" or os.access(kept.python, os.X_OK):
                return kept
        cwd = self.working_folder(manifest)
        if self.walls.contained:
            chosen = self._image(manifest, cwd, setup)
        else:
            chosen = environment.prepare(manifest, self._place(cwd), setup, os.environ)
        self._set_up(manifest, cwd, chosen, setup)
        supervisor.write_atomically(self.folder / environment.MACHINE, hardware(self.order.gpus))
        supervisor.write_atomically(done, asdict(chosen))
        return chosen

    def _place(self, cwd: Path) -> environment.Place:
        """Where its environment is made and kept."""
        return environment.Place(
            cwd=cwd,
            cache=self.services.data_dir / "cache" / "environments",
            walls=self.walls,
            work=self.folder / "work",
            node=self.folder,
            driver=driver_of(self.order.gpus),
            gpus=self.order.gpus,
        )

    def _image(self, manifest: Manifest, cwd: Path, setup: Setup) -> environment.Environment:
        """That of the job's container, with what its requirements add in the job's own home."""
        here = images.Images(self.walls.engine, self.services.data_dir / images.CACHE)
        image, inside = here.prepare(manifest, cwd, self.services.settings.container_image, setup)
        images.check(manifest, image, inside, processes=self.order.nodes * self.order.processes_per_node)
        containing.keep_image(self.folder, image)
        if manifest.training.requirements:
            self.walls.hand_over([self.folder / "work"])
            env = self.walls.environment(launch.base_environment(os.environ)) | images.INSTALLING
            before = self.walls.before(cwd, read=[self.folder / "work"])
            argv = images.install(image, manifest.training.requirements)
            setup.run(argv, cwd=cwd, env=env, code="environment_failed", before=before)
        return environment.Environment(image.python, "container")

    def _set_up(self, manifest: Manifest, cwd: Path, chosen: environment.Environment, setup: Setup) -> None:
        """Run the job's own commands, behind its walls."""
        env = launch.base_environment(os.environ)
        env["PATH"] = f"{Path(chosen.python).parent}:{env.get('PATH', '/usr/bin:/bin')}"
        env = self.walls.environment(env)
        env |= {name: str(value) for name, value in manifest.training.env.items()} | self.secrets.values
        redactor = self.secrets.redactor if self.secrets.values else None
        work = self.folder / "work"
        self.walls.hand_over([work])
        setup.owner = -1 if self.walls.user is None else self.walls.user
        for command in manifest.training.setup:
            setup.say(f"$ {command}")
            argv = ["/bin/sh", "-c", command]
            before = self.walls.before(cwd, write=[work], read=[*chosen.folders, *self.git_objects()])
            setup.run(argv, cwd=cwd, env=env, code="environment_failed", redactor=redactor, before=before)

    def git_objects(self) -> list[Path]:
        """What the checkout borrows of its repository's mirror, for a job that asks git about its commit."""
        mirror = checkout.mirror_path(self.services.data_dir / "mirrors", self.order.repository.id)
        return [mirror.resolve() / "objects"]
