"""The command `trainforge`: its list of commands, and how errors leave the program.

Little but click is imported here. Each command lives in `trainforge.commands` and is imported when it is
used, so that `trainforge --help` and shell completion answer at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from trainforge.config.errors import TrainForgeError

# section -> command -> (module in trainforge.commands, one-line help)
SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Project": {
        "init": ("init", "Make a project from a template."),
        "validate": ("manifest", "Check trainforge.yaml and name every problem."),
        "schema": ("manifest", "Print the JSON Schema of trainforge.yaml."),
        "plan": ("manifest", "Show where a job would run, and why."),
        "submit": ("submit", "Train the project as it is now, uncommitted changes included."),
    },
    "Jobs": {
        "status": ("jobs", "Show jobs, or one job in detail."),
        "logs": ("logs", "Print a job's output."),
        "pull": ("pull", "Bring a job's result home."),
        "stop": ("jobs", "Stop a job."),
        "retry": ("jobs", "Run a job again, as a new job."),
        "events": ("jobs", "Show what arrived, and what it led to."),
    },
    "Machines": {
        "sender": ("sender", "Run the sender, which turns pushes into jobs."),
        "direct": ("direct", "Train a commit without a sender."),
        "executor": ("executor", "Run an executor, which trains on this machine."),
        "github": ("github", "Connect repositories of GitHub."),
        "hooks": ("hooks", "Let a bare git repository announce its pushes."),
        "login": ("login", "Use a sender from this machine."),
        "ci": ("ci", "Train from a workflow of GitHub Actions."),
        "demo": ("demo", "See a push train on two executors, on this machine alone."),
    },
    "People": {
        "user": ("user", "Say who may use the sender, and as what."),
        "token": ("token", "Give scripts and machines access."),
        "secret": ("secret", "Keep values that jobs see and nobody reads again."),
        "audit": ("audit", "Show who did what at the sender."),
    },
}
HIDDEN = {"git-credential": ("git_credential", "Answer git's question for a password of the sender.")}
COMMANDS = {name: entry for section in (*SECTIONS.values(), HIDDEN) for name, entry in section.items()}


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"trainforge.commands.{COMMANDS[cmd_name][0]}")
        command = getattr(module, cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)  # noqa: S101 - a wrong table is a bug
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, text) for name, (_, text) in commands.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"there is no command {args[0]!r}{_nearest(args[0])}")
        return super().resolve_command(ctx, args)


def _nearest(word: str) -> str:
    import difflib

    close = difflib.get_close_matches(word, COMMANDS, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"trainforge {version('trainforge')}")
        ctx.exit()


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
def cli() -> None:
    """GitOps for model training: push a commit, get the trained model back on a branch.

    First steps: `trainforge demo`, or `trainforge init` in an empty folder.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run(arguments))


def run(arguments: list[str]) -> int:
    """Run one command line; the exit code. Every expected refusal becomes a message, never a traceback."""
    try:
        code = cli.main(args=arguments, prog_name="trainforge", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        if "--json" in arguments:
            _say_misuse(error)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except TrainForgeError as error:
        from trainforge.commands.common import show_error

        show_error(error, as_json="--json" in arguments)
        return error.exit_code
    return code if isinstance(code, int) else 0


def _say_misuse(error: click.ClickException) -> None:
    from trainforge.commands.common import print_json

    hint = "`--help` says how it is used"
    print_json({"error": {"code": "usage", "detail": error.format_message(), "hint": hint}})
