"""docs/commands.md names every command with every option, and none that does not exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from trainforge.cli import cli

PAGE = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
SECTION = re.compile(
    r"^### trainforge ([a-z -]+[a-z])(?: [^a-z\n][^\n]*)?\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL
)
SECTIONS = {match[1]: match[2] for match in SECTION.finditer(PAGE)}


def commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


COMMANDS = dict(commands(cli))


def options(command: click.Command) -> set[str]:
    found = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    return {name for option in found for name in option.opts}


def test_every_command_has_its_section_and_no_other() -> None:
    assert set(SECTIONS) == set(COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_is_documented_and_exists(name: str) -> None:
    lines = [line for line in SECTIONS[name].splitlines() if line.startswith("- `-")]
    heads = [re.match(r"- ((?:`-[^`]+`(?:, )?)+)", line) for line in lines]
    documented = {option for head in heads if head for option in re.findall(r"`(-[^`]+)`", head[1])}
    assert documented == options(COMMANDS[name])


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_and_option_has_help(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name != "template":
            assert parameter.help, parameter.name


def usages(page: str) -> Iterator[list[str]]:
    """The words after `trainforge` wherever a page shows a command, in a line of its own or in the text."""
    shown = re.findall(r"`([^`\n]+)`", page) + page.splitlines()
    for text in shown:
        words = text.partition("#")[0].split()
        if len(words) > 1 and words[0] == "trainforge":
            yield words[1:]


def test_every_page_uses_commands_and_options_that_exist() -> None:
    root = Path(__file__).parents[2]
    for page in [root / "README.md", *(root / "docs").glob("*.md")]:
        for words in usages(page.read_text()):
            names = [" ".join(words[:count]) for count in (2, 1)]
            name = next((name for name in names if name in COMMANDS), "")
            group = any(known.startswith(f"{words[0]} ") for known in COMMANDS) and len(words) == 1
            if words[0].startswith("-") or words[0] == "COMMAND" or group:
                continue
            assert name, f"{page.name}: trainforge {' '.join(words)}"
            used = {word.partition("=")[0] for word in words if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word)}
            assert used <= options(COMMANDS[name]) | {"--help"}, f"{page.name}: {words}"
