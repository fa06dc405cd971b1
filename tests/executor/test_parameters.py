"""How a job's parameters reach its script."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from support.executors import Project, ended, joined, running, story
from support.sender_double import SenderDouble
from trainforge.config.errors import NodeFailed
from trainforge.config.messages import Repository, RunOrder
from trainforge.executor import parameters

ORDER = RunOrder(
    repository=Repository(id="r", name="r", url="/r"),
    ref="refs/heads/main",
    commit="a" * 40,
    manifest_path="trainforge.yaml",
    manifest_blob="b" * 40,
    project="p",
    nodes=3,
    processes_per_node=2,
    params={"lr": 0.1, "output_dir": "out/rank-2"},
    results_branch="results",
    lease_ttl=9,
)


def test_a_node_knows_its_place_and_nothing_is_adapted_again() -> None:
    second = parameters.of_node(ORDER, 2, 6)
    assert second["output_dir"] == "out/rank-2"
    place = {"world_size": 6, "nodes": 3, "node_rank": 2, "processes_per_node": 2}
    assert second["distributed"] == place
    alone = parameters.of_node(ORDER.model_copy(update={"nodes": 1}), 0, 1)
    assert "distributed" not in alone
    own = ORDER.model_copy(update={"params": {"distributed": "fsdp"}})
    assert parameters.of_node(own, 1, 6)["distributed"] == "fsdp"


def test_parameters_are_laid_over_the_config_file(tmp_path: Path) -> None:
    params = {"lr": 0.1, "model": {"layers": 4}}
    for name, write, read in (("c.yaml", yaml.safe_dump, yaml.safe_load), ("c.json", json.dumps, json.loads)):
        path = tmp_path / "deep" / name
        parameters.write_config(path, params, name)
        assert read(path.read_text()) == params
        path.write_text(write({"lr": 9, "model": {"layers": 1, "width": 8}, "seed": 3}))
        parameters.write_config(path, params, name)
        assert read(path.read_text()) == {"lr": 0.1, "model": {"layers": 4, "width": 8}, "seed": 3}
        for wrong in ("[1, 2]", "{"):
            path.write_text(wrong)
            with pytest.raises(NodeFailed, match=f"training.config: {name}"):
                parameters.write_config(path, params, name)


def test_a_script_gets_its_parameters_in_every_way(double: SenderDouble, tmp_path: Path) -> None:
    manifest = (
        "project: {name: test}\n"
        "training:\n"
        "  script: train.py\n"
        "  launcher: python\n"
        "  args: --lr {{ params.lr }} --name={{params.name}} '{{ params.model.layers }} layers'\n"
        "  config: settings/own.yaml\n"
        "  params: {lr: 0.5, name: big, model: {layers: 4}}\n"
    )
    script = (
        "import json, os, sys, yaml\n"
        "print(sys.argv[1:])\n"
        "print(yaml.safe_load(open('settings/own.yaml')))\n"
        "print(json.load(open(os.environ['TRAINFORGE_PARAMS_FILE'])))\n"
    )
    files = {"trainforge.yaml": manifest, "train.py": script, "settings/own.yaml": "lr: 1\nseed: 3\n"}
    project = Project(tmp_path, files)
    chosen, executor = joined(double, tmp_path / "laptop")
    params = {"lr": 0.25, "name": "big", "model": {"layers": 4}}
    with running(chosen):
        (node,) = double.run(project.job(), [executor], project.order(params=params))
        assert ended(node)["code"] == "", story(node)
    arguments, config, plain = node.text(0).splitlines()
    assert arguments == "['--lr', '0.25', '--name=big', '4 layers']"
    assert config == str({"lr": 0.25, "seed": 3, "name": "big", "model": {"layers": 4}})
    assert plain == str(params)
