"""The command line teaches by example, and a shell completes it."""

import re
import subprocess

import click
import pytest
from click.testing import CliRunner

from dataworth.command.cli import cli
from dataworth.command.help import BY_COMMAND, FIRST, WHOLE


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_option_of_an_example_is_one(name):
    shown = CliRunner().invoke(cli, [name, "--help"])
    assert shown.exit_code == 0
    known = {option for parameter in cli.commands[name].params for option in parameter.opts}
    texts = (WHOLE, *BY_COMMAND.values(), *FIRST.values())
    own = "\n".join(line for text in texts for line in text.splitlines() if f"dataworth {name} " in line)
    own += "\n" + re.sub(r"^", " ", FIRST.get(name, ""), flags=re.MULTILINE)
    for option in re.findall(r"(?<=\s)--[a-z][\w.-]*", own.replace("--nproc-per-node", "")):
        assert option in known, option
    if name in BY_COMMAND:
        assert "Example" in shown.output


@pytest.mark.parametrize("name", FIRST)
def test_help_is_one_screen_and_all_on_request(name):
    command, run = cli.commands[name], CliRunner()
    first, whole = (run.invoke(cli, [name, *words]).output for words in (["--help"], ["-h", "all"]))
    assert len(first.splitlines()) <= 24
    assert all(len(line) <= 120 for line in first.splitlines())
    assert "Example" in first
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert f"All {len(options)} options: " in first
    assert f"{name} --help all" in first
    assert all(max(option.opts, key=len) in whole for option in options)
    assert BY_COMMAND[name].splitlines()[2] in whole
    refused = run.invoke(cli, [name, "--help", "more"])
    assert str(refused.exception) == "--help more: expected nothing after it, or all"


def test_commands_of_few_options_say_them_all():
    few = [name for name, command in cli.commands.items() if name not in FIRST and len(command.params) > 30]
    assert few == []


def test_the_first_screen_names_every_command():
    shown = CliRunner().invoke(cli, ["--help"]).output
    assert "dataworth demo" in shown
    assert all(f"\n  {name} " in shown for name in cli.commands)


def test_completion_of_bash():
    script = CliRunner().invoke(cli, ["completion", "bash"]).output
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    words = {"COMP_WORDS": "dataworth value --sources.gam", "COMP_CWORD": "2", "_DATAWORTH_COMPLETE": "bash_complete"}
    assert CliRunner().invoke(cli, [], env=words, prog_name="dataworth").output.split() == ["plain,--sources.game"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_of_other_shells(shell):
    assert "dataworth" in CliRunner().invoke(cli, ["completion", shell]).output
    assert CliRunner().invoke(cli, ["completion", "powershell"]).exit_code == 2
