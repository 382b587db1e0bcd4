"""The command line. Heavy libraries are imported inside the commands: `dataworth --help` answers at once."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn, cast

import click
from click.shell_completion import get_completion_class

from dataworth.command.answers import ANSWERS
from dataworth.command.finished import say_audit, say_valuation
from dataworth.command.given import check_address, check_inputs, make_homes, stores
from dataworth.command.help import BY_COMMAND, FIRST, WHOLE
from dataworth.command.imports import many_imports
from dataworth.command.options import ConfiguredCommand, configuration, options
from dataworth.command.terminal import (
    escape_what_is_not_shown,
    mlflow_place,
    named_broken_pipe,
    passages,
    say,
    say_what_is_done,
    sentences_for_known_errors,
    table,
    verbose,
)
from dataworth.config import (
    AuditRunConfig,
    CorpusRunConfig,
    DemoConfig,
    DoctorConfig,
    PublishConfig,
    SearchConfig,
    ValueConfig,
)
from dataworth.lifecycle.interrupts import interrupted, tell_interrupts
from dataworth.storage.errors import DataworthError, InputError, ServerLostError
from dataworth.tasks.visible import visible, without_password

if TYPE_CHECKING:
    from dataworth.storage.ref import StoreRef

__all__ = ["main"]


@click.group(help=WHOLE, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="dataworth")
def cli() -> None:
    """The command group."""


def _command(
    name: str, kind: type[Any], text: str, *, together: bool = False
) -> Callable[[Callable[[Any], None]], click.Command]:
    """Register a command that takes one configuration; `together`: several processes of torchrun may run it."""

    def register(run: Callable[[Any], None]) -> click.Command:
        def callback(**given: Any) -> None:
            config = configuration(kind, given)
            check_address(getattr(config, "store", None))
            make_homes(config)
            if int(os.environ.get("WORLD_SIZE", "1")) == 1:
                with named_broken_pipe():
                    run(config)
            elif together:
                _run_together(run, config)
            else:
                raise InputError(f"several processes work on `index` and `fit`; start `{name}` by itself after them")

        params = [*options(kind), verbose()]
        command = ConfiguredCommand(name, params=params, callback=callback, help=text, no_args_is_help=False)
        cli.add_command(command)
        return command

    return register


@contextmanager
def _served() -> Iterator[None]:
    """Flows may run in the block."""
    with many_imports():
        from dataworth.lifecycle.lost_server import named_loss
        from dataworth.serving.local_server import prefect_api

    with prefect_api(_import_flows), named_loss():
        yield


def _import_flows() -> None:
    with many_imports():
        import dataworth.deployed  # noqa: F401


def _run_together(run: Callable[[Any], None], config: Any) -> None:
    """The first of several processes runs the command; the others carry out its orders."""
    from dataworth.tasks.curvature.fitting import ACTIONS as FITTING
    from dataworth.tasks.gradients.steps import ACTIONS as INDEXING
    from dataworth.tasks.torchrun import follow, processes

    if processes().leads:
        run(config)
        processes().leave()
    else:
        follow({**FITTING, **INDEXING})


@_command("value", ValueConfig, "Value a corpus for some queries: gradients, curvature, scores, values, report.")
def _value(config: ValueConfig) -> None:
    check_inputs([*config.corpus.files, *config.candidates.files], config.queries.file)
    with _served():
        from dataworth.value_corpus import value_corpus

        valuation = value_corpus(config)
    if not _skipped(valuation):
        say_valuation(cast(dict[str, Any], valuation))


@_command("index", CorpusRunConfig, "Store the projected gradients of a corpus.", together=True)
def _index(config: CorpusRunConfig) -> None:
    check_inputs(config.corpus.files)
    with _served():
        from dataworth.index_corpus import index_corpus

        indexed = index_corpus(config)
    if not _skipped(indexed):
        for each in cast("list[StoreRef]", indexed):
            say(f"gradient store: {each.location}")


@_command("fit", CorpusRunConfig, "Fit bases and curvature of a model on a corpus.", together=True)
def _fit(config: CorpusRunConfig) -> None:
    check_inputs(config.corpus.files)
    with _served():
        from dataworth.fit_curvature import fit_curvature

        fitted = fit_curvature(config)
    if not fitted:
        say("curvature none: nothing to fit")
    elif not _skipped(fitted):
        for each in cast("list[StoreRef]", fitted):
            say(f"curvature store: {each.location}")


def _skipped(outcome: Any) -> bool:
    """Say so, where a run was skipped."""
    skipped = isinstance(outcome, dict) and outcome.keys() == {"skipped"}
    if skipped:
        say(f"skipped: {outcome['skipped']}")
    return skipped


@_command(
    "search", SearchConfig, "The documents that taught the model most about one query, from a sketch of the store."
)
def _search(config: SearchConfig) -> None:
    check_inputs(config.corpus.files)
    with many_imports():
        from dataworth.search import search

    answer = search(config)
    say(f"{answer.text}\n")
    say(passages(answer.documents))


@_command("demo", DemoConfig, "Train a small model on the documentation in Python's standard library and value it.")
def _demo(config: DemoConfig) -> None:
    with _served():
        from dataworth.demo import demo, demo_report

        made = demo(config)
    say(demo_report(made))


@_command("audit", AuditRunConfig, "How far scores can be trusted on a model: every method against training again.")
def _audit(config: AuditRunConfig) -> None:
    if config.corpus is not None:
        check_inputs(config.corpus.files, None if config.queries is None else config.queries.file)
    with _served():
        from dataworth.audit_valuation import audit_valuation

        audited = cast(dict[str, Any], audit_valuation(config))
    if not _skipped(audited):
        say_audit(audited)


@_command("publish", PublishConfig, "Log a valuation to MLflow, where that failed; done twice, it leaves one run.")
def _publish(config: PublishConfig) -> None:
    with many_imports():
        from dataworth.command.publish import publish

    logged = publish(config)
    say(f"MLflow   {mlflow_place(logged.url, logged.run_id)}")


for _answer in ANSWERS:
    cli.add_command(_answer)


STORE_OPTION = click.option(
    "--store", metavar="DIR", help="Folder of the stores, or s3://bucket/prefix; default: as in `dataworth value`."
)


@cli.command(help="Withdraw sources or documents: no later valuation counts them, whatever its corpus holds.")
@STORE_OPTION
@click.option("--source", "sources", multiple=True, metavar="NAME", help="A source; may be given several times.")
@click.option("--document", "documents", multiple=True, metavar="ID", help="A document; may be given several times.")
def withdraw(store: str | None, sources: tuple[str, ...], documents: tuple[str, ...]) -> None:
    """Add to the list of withdrawals."""
    from dataworth.storage.withdrawals import Withdrawals

    if not sources and not documents:
        raise InputError("nothing to withdraw: pass --source NAME or --document ID")
    root = stores(store)
    added = Withdrawals(root).add(sources, documents)
    say(
        f"{added} withdrawn, {len(sources) + len(documents) - added} had been before; "
        "`dataworth compact` removes what is stored of them"
    )


@cli.command(help="Remove what withdrawn documents left in the stores: texts, gradients, and what was made of them.")
@STORE_OPTION
def compact(store: str | None) -> None:
    """Give back the space of what was withdrawn."""
    from dataworth.command.receipts import checked, receipt
    from dataworth.storage.compaction import compact as compacted

    done = compacted(stores(store))
    for removal, path in done.receipts:
        say(receipt(removal, path))
    if not done.receipts:
        say(f"nothing of a withdrawn document is there; {checked(done.checked)}")


@cli.command(help="Read every store and name what is damaged; `dataworth index` then repairs damaged gradients.")
@STORE_OPTION
def verify(store: str | None) -> None:
    """Check everything; exit 1 if anything is damaged."""
    from dataworth.storage.verification import verified

    n_checked = n_bytes = n_damaged = 0
    for entry in verified(stores(store)):
        n_checked, n_bytes = n_checked + 1, n_bytes + entry.n_bytes
        if entry.damage is not None:
            n_damaged += 1
            say(f"{entry.what}: {entry.damage}")
    say(f"{n_checked} stores and shards, {n_bytes / 2**20:,.1f} MB checked, {n_damaged} damaged")
    if n_damaged:
        raise DataworthError(f"{n_damaged} of {n_checked} are damaged")


@cli.command(help="Start Prefect server, MLflow and a worker on loopback and print their addresses; Ctrl-C ends them.")
@click.option(
    "--prefect-port", type=click.IntRange(0, 65535), help="Default: 4200, another where that is not free; 0: any."
)
@click.option("--mlflow-port", type=click.IntRange(0, 65535), default=5000, show_default=True)
def ui(prefect_port: int | None, mlflow_port: int) -> None:
    """Bring up both UIs."""
    make_homes()
    from dataworth.serving.servers import serve

    serve(prefect_port, mlflow_port)


def _doctor(**given: Any) -> None:
    """Print a line for everything a run needs; exit 1 if something is missing."""
    config = configuration(DoctorConfig, given)
    from dataworth.command.doctor import checks

    rows = checks()
    if config.model is not None:
        from dataworth.command.checkup import checkup

        rows += [row for model in config.model.checkpoints for row in checkup(model, config.corpus)]
    cells = [["ok" if row.ok else "FAILS", row.what, row.found] for row in rows]
    say(table(["", "what", "found"], cells, n_text=3))
    if not all(row.ok for row in rows):
        raise DataworthError("; ".join(f"{row.what}: {row.remedy}" for row in rows if not row.ok))


cli.add_command(
    ConfiguredCommand(
        "doctor",
        params=options(DoctorConfig),
        callback=_doctor,
        help="What is installed, which device, which servers answer, what would fail; with --model, and --corpus, "
        "also what is to be known of these.",
    )
)


@cli.command(help="A script that lets a shell complete commands and options.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    completion_class = get_completion_class(shell)
    if completion_class is None:
        raise InputError(f"{shell}: no completion for this shell")
    click.echo(completion_class(cli, {}, "dataworth", "_DATAWORTH_COMPLETE").source())


for _name, _examples in BY_COMMAND.items():
    cli.commands[_name].epilog = _examples
for _name, _screen in FIRST.items():
    cast(ConfiguredCommand, cli.commands[_name]).first = _screen


def main() -> None:
    """Entry point: exit code 0 done, 1 failed, 2 bad input or options, 130 interrupted."""
    escape_what_is_not_shown()
    sentences_for_known_errors()
    say_what_is_done()
    # A polite end is the same whoever asks for it: servers and workers that were started are ended, too.
    tell_interrupts()
    sys.exit(_exit_code())


def _end_at_once(code: int) -> NoReturn:
    """Without Prefect's attempts, minutes long, to send its last events and lines to a server that is away."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _exit_code() -> int:
    try:
        code = cli.main(standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        # After an interrupt libraries raise errors of their own.
        exit_code = (
            _interrupted() if interrupted() or isinstance(error, KeyboardInterrupt | click.Abort) else _say(error)
        )
        if isinstance(error, ServerLostError):
            _end_at_once(exit_code)
        return exit_code
    return code if isinstance(code, int) else 0


def _interrupted() -> int:
    return _complain("interrupted; what was finished is kept, the same command goes on from there", 130)


def _say(error: Exception) -> int:
    """Say what an error is; the exit code."""
    if isinstance(error, click.ClickException):
        return _complain(error.format_message(), 2)
    if isinstance(error, InputError):
        return _complain(str(error), 2)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return _complain("the disk is full; free some space or move --store, and the same command goes on", 1)
    if isinstance(error, DataworthError | OSError):
        return _complain(str(error), 1)
    if os.environ.get("DATAWORTH_TRACEBACK"):
        raise error
    return _complain(f"{type(error).__name__}: {error} (DATAWORTH_TRACEBACK=1 shows where)", 1)


def _complain(sentence: str, code: int) -> int:
    with suppress(BrokenPipeError):
        print(f"dataworth: {visible(' '.join(without_password(sentence).split()))}", file=sys.stderr, flush=True)
    return code
