"""Command-line options generated from the configuration models, and configuration files."""

import os
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from dataworth.storage.errors import InputError
from dataworth.storage.plain_files import open_plain
from dataworth.storage.spelling import SHORT, as_option
from dataworth.tasks.model.config import with_folders

__all__ = ["ConfiguredCommand", "command_here", "command_line", "configuration", "options", "validated"]

Config = TypeVar("Config", bound=BaseModel)

MAX_FILE_BYTES = 2**20

# Stands for the dot in the names that click hands over, which must be Python identifiers.
LEVEL = "__"


def _fields(config: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted names and fields of all leaves."""
    for name, field in config.model_fields.items():
        group = _group(field.annotation)
        if group is not None:
            yield from _fields(group, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _group(annotation: Any) -> type[BaseModel] | None:
    """The configuration that a field holds, or may hold; None where it holds a value."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _option(name: str, field: FieldInfo) -> click.Option:
    annotation = field.annotation
    flags = [flag for flag in (SHORT.get(name), f"--{name}") if flag]
    variable = name.replace(".", LEVEL)
    default = field.get_default(call_default_factory=True, validated_data={})
    described = field.description or ""
    if not field.is_required() and default not in (None, [], False):
        described += f" [default: {default}]"
    if annotation is bool:
        return click.Option([f"{flags[0]}/--no-{name}", variable], default=None, help=described)
    kind = click.Choice(get_args(annotation)) if get_origin(annotation) is Literal else None
    multiple = get_origin(annotation) is list
    metavar = None if kind else ("TEXT…" if multiple else "TEXT")
    return click.Option([*flags, variable], type=kind, multiple=multiple, metavar=metavar, help=described, default=None)


def options(config: type[BaseModel]) -> list[click.Parameter]:
    """One option for every field of a configuration, and --config."""
    file = click.Option(["--config", "config_file"], metavar="FILE", help="YAML or TOML file with the same names.")
    return [file, *(_option(name, field) for name, field in _fields(config))]


def command_line(command: str, config: BaseModel) -> str:
    """The shell command that gives this configuration: every option that is not at its default, quoted."""
    words = ["dataworth", command]
    for name, field in _fields(type(config)):
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is None:
            continue
        if not field.is_required() and value == field.get_default(call_default_factory=True, validated_data={}):
            continue
        flag = as_option(name)
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{name}")
        else:
            given = value if isinstance(value, list) else [value]
            words += [word for each in given for word in _assigned(flag, str(each))]
    return " ".join(shlex.quote(word) for word in words)


def command_here(command: str, config: BaseModel) -> str:
    """`command_line` after a `cd` to the current folder, in which relative paths start."""
    return f"cd {shlex.quote(str(Path.cwd()))}\n{command_line(command, config)}"


def _assigned(flag: str, value: str) -> list[str]:
    """A value that looks like an option is joined to its flag."""
    return [f"{flag}={value}"] if value.startswith("-") else [flag, value]


# What may follow --help, and what it is without.
ALL, SCREEN = "all", "screen"
# What says yes and no, as in a file.
SAID = {**dict.fromkeys(("true", "yes", "on", "1"), True), **dict.fromkeys(("false", "no", "off", "0"), False)}


class ConfiguredCommand(click.Command):
    """A command whose list options take several words, `--corpus a.jsonl b.jsonl`, and whose flags take one or none.

    `--scoring.save_matrix`, `--scoring.save_matrix true` and `--scoring.save_matrix=true` are the same. Of a command
    with many options `--help` is one screen, and `--help all` everything.
    """

    first = ""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        if not self.first:
            return super().get_help_option(ctx)
        flags = self.get_help_option_names(ctx)
        text = f"This screen; `{flags[-1]} {ALL}`: every option."
        return click.Option(
            flags, is_flag=False, flag_value=SCREEN, metavar=f"[{ALL}]", is_eager=True, expose_value=False,
            help=text, callback=self._show,
        )  # fmt: skip

    def _show(self, ctx: click.Context, _: click.Parameter, value: str | None) -> None:
        if value is None or ctx.resilient_parsing:
            return
        if value not in (SCREEN, ALL):
            raise InputError(f"--help {value}: expected nothing after it, or {ALL}")
        click.echo(self.get_help(ctx) if value == ALL else self._screen(ctx))
        ctx.exit()

    def _screen(self, ctx: click.Context) -> str:
        formatter = ctx.make_formatter()
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        n_options = sum(isinstance(option, click.Option) for option in self.params)
        rest = f"All {n_options} options: {ctx.command_path} --help {ALL}"
        body = "".join(f"  {line}".rstrip() + "\n" for line in self.first.splitlines())
        return f"{formatter.getvalue()}\n{body}\n  {rest}"

    def _flags_alone(self, words: list[str]) -> Iterator[str]:
        """The words, every yes or no that follows a flag drawn into it: such a command takes no words by themselves."""
        opposites = {option.opts[0]: option.secondary_opts[0] for option in self.params if option.secondary_opts}
        rest = list(words)
        while rest:
            word = rest.pop(0)
            flag, joined, value = word.partition("=")
            if flag in opposites or flag in opposites.values():
                given = value if joined else rest.pop(0) if rest and not rest[0].startswith("-") else None
                word = _flag(flag, opposites.get(flag), given)
            yield word

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        several = {flag for option in self.params if getattr(option, "multiple", False) for flag in option.opts}
        expanded: list[str] = []
        flag = None
        for word in self._flags_alone(args):
            if word.startswith("-"):
                flag = word.partition("=")[0]
                flag = flag if flag in several else None
            elif flag is not None and expanded[-1] != flag:
                expanded.append(flag)
            expanded.append(word)
        return super().parse_args(ctx, expanded)


def _flag(flag: str, opposite: str | None, value: str | None) -> str:
    """The flag, or its opposite, that says what a flag and its value do."""
    if value is None:
        return flag
    if opposite is None:
        raise InputError(f"{flag}: says no by itself and takes no value, got {value!r}")
    if value.lower() not in SAID:
        raise InputError(f"{flag}: expected true or false, got {value!r}")
    return flag if SAID[value.lower()] else opposite


class _OnceLoader(yaml.SafeLoader):
    """Refuses a name that comes twice in one group, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        names = [self.construct_object(key, deep=True) for key in own]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} comes twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _file_content(name: str) -> dict[str, Any]:
    path = Path(name)
    try:
        with open_plain(path, name) as file:
            text = file.read(MAX_FILE_BYTES + 1).decode().replace("\r\n", "\n")
        if len(text) > MAX_FILE_BYTES:
            raise InputError(f"{name}: longer than {MAX_FILE_BYTES:,} bytes, as no configuration is")
        content = tomllib.loads(text) if path.suffix.lower() == ".toml" else yaml.load(text, _OnceLoader)
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{name}: broken configuration ({' '.join(str(error).split())})") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{name}: expected names and values, got {type(content).__name__}")
    return {key: _at_home(value) for key, value in content.items()}


def _at_home(value: Any) -> Any:
    """With the home folder for `~`, as a shell has it."""
    if isinstance(value, dict):
        return {key: _at_home(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_at_home(each) for each in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def configuration(kind: type[Config], given: Mapping[str, Any]) -> Config:
    """A configuration from the command line's values, over those of its --config file, over the defaults.

    Args:
        kind: which configuration.
        given: option name → value, None or empty where the option was not used; `config_file` names the file.

    Raises:
        InputError: a value that cannot be used, in one line.
    """
    content = _file_content(given["config_file"]) if given.get("config_file") else {}
    for name, value in given.items():
        if name == "config_file" or value is None or value == ():
            continue
        *groups, leaf = name.split(LEVEL)
        target = content
        for group in groups:
            inner = target.setdefault(group, {})
            if not isinstance(inner, dict):
                raise InputError(f"{given['config_file']}, field {group!r}: expected a group of values, got {inner!r}")
            target = inner
        target[leaf] = list(value) if isinstance(value, tuple) else value
    return validated(kind, with_folders(content))


def validated(kind: type[Config], content: Mapping[str, Any]) -> Config:
    """A configuration, or an InputError that names every wrong field in one line."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        sentences = []
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"] if not isinstance(part, int))
            option = as_option(name)
            said = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "missing":
                nested = [
                    as_option(leaf)
                    for leaf, field in _fields(kind)
                    if leaf.startswith(f"{name}.") and field.is_required()
                ]
                sentences.append(f"{' and '.join(nested) or option} is required")
            elif problem["type"] == "extra_forbidden":
                sentences.append(f"{name}: no such option{_nearest(kind, name)}")
            elif problem["type"] == "invalid_key":
                sentences.append(f"{problem['input']!r}: no such option, names are text")
            elif problem["type"] in ("model_type", "model_attributes_type"):
                within = next(leaf for leaf, _ in _fields(kind) if leaf.startswith(f"{name}."))
                sentences.append(f"{name}: expected a group of values, such as {within}, got {problem['input']!r}")
            elif problem["type"] == "list_type":
                sentences.append(f"{option}: expected a list, got {problem['input']!r}")
            elif isinstance(problem["input"], Mapping):  # several fields that do not go together
                sentences.append(said)
            else:
                begun = said if said != problem["msg"] else f"{said[0].lower()}{said[1:]}"  # names keep their letters
                sentences.append(f"{option}: {begun}, got {problem['input']!r}")
        raise InputError("; ".join(dict.fromkeys(sentences))) from None


def _nearest(kind: type[BaseModel], name: str) -> str:
    """What may have been meant by a name that there is not, in words."""
    leaves = [leaf for leaf, _ in _fields(kind)]
    groups = {leaf[:end] for leaf in leaves for end, letter in enumerate(leaf) if letter == "."}
    near = get_close_matches(name, [*leaves, *sorted(groups)], 1) or [
        leaf for leaf in leaves if leaf.endswith(f".{name}")
    ]
    return f"; did you mean {near[0]}?" if near else ""
