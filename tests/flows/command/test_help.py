"""The command line teaches by example, and a shell completes it."""

import re
import subprocess

import pytest
from click.testing import CliRunner

from dataworth.command.cli import cli
from dataworth.command.help import BY_COMMAND, WHOLE


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_option_of_an_example_is_one(name):
    shown = CliRunner().invoke(cli, [name, "--help"])
    assert shown.exit_code == 0
    known = {option for parameter in cli.commands[name].params for option in parameter.opts}
    own = "\n".join(
        line for text in (WHOLE, *BY_COMMAND.values()) for line in text.splitlines() if f"dataworth {name} " in line
    )
    for option in re.findall(r"(?<=\s)--[a-z][\w.-]*", own.replace("--nproc-per-node", "")):
        assert option in known, option
    if name in BY_COMMAND:
        assert "Example" in shown.output


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
