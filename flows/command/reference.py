"""The page of every command and option, made from the configuration: `python -m dataworth.command.reference > PAGE`."""

import sys

import click

from dataworth.command.cli import cli

__all__ = ["options_page"]

BEGINNING = """\
# Every command and option

Made from the configuration by `python -m dataworth.command.reference`; `dataworth COMMAND --help all` says the same. In
a `--config` file and from Python, `--projection.rank 64` is the field `rank` of `projection`.
"""


def options_page() -> str:
    """The page in Markdown: one section per command, one row per option."""
    context = click.Context(cli, info_name="dataworth")
    sections = [BEGINNING]
    for name in cli.list_commands(context):
        command = cli.commands[name]
        rows = [_row(option, context) for option in command.params if isinstance(option, click.Option)]
        words = [option.human_readable_name for option in command.params if isinstance(option, click.Argument)]
        title = " ".join(("dataworth", name, *words))
        table = ["| option | default | |", "| --- | --- | --- |", *rows] if rows else []
        sections.append("\n".join([f"## `{title}`", "", _cell(command.help or ""), "", *table, ""]))
    return "\n".join(sections)


def _row(option: click.Option, context: click.Context) -> str:
    flags = ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
    text, _, default = (option.help or "").partition("[default: ")
    shown = default.removesuffix("]") or option.get_default(context)
    has_one = shown is not None and shown is not False and shown not in ("", ()) and "Sentinel" not in str(shown)
    return f"| {flags} | {f'`{shown}`' if has_one else ''} | {_cell(text)} |"


def _cell(text: str) -> str:
    return " ".join(text.replace("\b", "").split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(options_page())
