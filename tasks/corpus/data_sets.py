"""Rows of data sets of the `datasets` library, `hf:NAME`: none of another place, and unpacked under limits."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dataworth.storage.errors import InputError
from dataworth.storage.limited import half_of_memory, limited_command, run_limited, sentence_of_end
from dataworth.storage.plain_files import below, no_plain_file, open_plain, trusted_folder
from dataworth.tasks.corpus.rows import Row
from dataworth.tasks.visible import reason, visible

__all__ = ["hugging_face"]

PROGRAM = Path(__file__).with_name("unpacking.py")
CARDS = ("README.md", ".huggingface.yaml")
MAX_CARD_BYTES = 2**20
# What one file of a local data set may become, unpacked: texts are packed 3 to 10 times, seldom 50 times.
MAX_UNPACKED = 250
FREE_BYTES = 2**30
# Groups of a million rows are read at once.
MAX_MEMORY = 2**34


def hugging_face(name: str) -> Iterator[Row]:
    """`hf:NAME[[:CONFIG]:SPLIT]`; NAME is a data set of the hub or a local folder of data files, SPLIT is train.

    Raises:
        InputError: it cannot be loaded, or is of files elsewhere.
    """
    where = visible(name)
    dataset, *parts = name.removeprefix("hf:").split(":")
    if not dataset or len(parts) > 2:
        raise InputError(f"{where}: expected hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT")
    config, split = (parts[0] if len(parts) == 2 else None), (parts[-1] if parts else "train")
    try:
        for number, row in enumerate(_loaded(dataset, config or None, split or "train", where), 1):
            yield dict(row), f"{where}, row {number}"
    except (InputError, MemoryError):
        raise
    except Exception as error:  # the hub's client raises errors of many libraries; each means the same to the user
        raise InputError(f"{where}: the data set cannot be loaded ({reason(error)})") from error


def _loaded(dataset: str, config: str | None, split: str, where: str) -> Any:
    import datasets

    datasets.disable_progress_bars()
    for card in _cards(dataset):
        _refuse_elsewhere(card, where)
    builder = datasets.load_dataset_builder(dataset, config)
    n_largest = _refuse_files_elsewhere(builder, dataset, where)
    if not os.path.exists(builder.cache_dir):
        _unpack(dataset, config, n_largest, where)
    builder.download_and_prepare()  # what is there is only looked at
    return builder.as_dataset(split=split)


def _cards(dataset: str) -> Iterator[Path]:
    """Files that say where the data are, of a local folder or of the hub."""
    if os.path.isdir(dataset):
        yield from (path for card in CARDS if os.path.lexists(path := Path(dataset, card)))
        return
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    for card in CARDS:
        # Whether there is such a data set is for those to say who look for it next.
        with contextlib.suppress(EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
            yield Path(hf_hub_download(dataset, card, repo_type="dataset"))


def _refuse_elsewhere(card: Path, where: str) -> None:
    """Refuse a card that names data outside of its folder, before anything looks for them."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    name = f"{where}: its {card.name}"
    with open_plain(card, name, trusted_folder(card.parent)) as file:
        content = file.read(MAX_CARD_BYTES + 1)
    if len(content) > MAX_CARD_BYTES:
        raise InputError(f"{name} is longer than {MAX_CARD_BYTES:,} bytes")
    text = content.decode(errors="replace")
    if card.suffix == ".md":
        match = REGEX_YAML_BLOCK.search(text)
        if match is None:
            return
        text = match[2]
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
        raise InputError(f"{name} repeats parts of itself (YAML's *name); write them out")
    settings = yaml.safe_load(text)
    for pattern in _patterns(settings.get("configs") if isinstance(settings, dict) else None):
        parts = pattern.replace("\\", "/").split("/")
        if os.path.isabs(pattern) or ":" in pattern or ".." in parts or parts[0].startswith("~"):
            raise InputError(
                f"{name} names data_files {visible(pattern)[:200]!r}, which are outside of the data set; only files in "
                "its own folder are read"
            )


def _patterns(part: Any, *, of_files: bool = False) -> Iterator[str]:
    """Every text below `data_files` and `data_dir`, however it is nested."""
    if isinstance(part, str) and of_files:
        yield part
    elif isinstance(part, list):
        for each in part:
            yield from _patterns(each, of_files=of_files)
    elif isinstance(part, dict):
        for key, each in part.items():
            yield from _patterns(each, of_files=(of_files and key != "split") or key in ("data_files", "data_dir"))


def _refuse_files_elsewhere(builder: Any, dataset: str, where: str) -> int:
    """Refuse files outside of the data set, or that are none; bytes of the largest, 0 of those of the hub."""
    local = os.path.isdir(dataset)
    folder = trusted_folder(Path(dataset)) if local else None
    n_largest = 0
    for files in (builder.config.data_files or {}).values():
        for file in files:
            path = str(file)
            if folder is None:
                outside = not path.startswith(f"hf://datasets/{dataset}@")
            else:
                outside = "://" in path or "::" in path or not below(path, folder)
            if outside:
                raise InputError(f"{where}: {visible(path)} is outside of the data set, of which only files are read")
            if local:
                state = os.stat(path)
                what = no_plain_file(state.st_mode)
                if what is not None:
                    raise InputError(f"{where}: {visible(path)} is {what}, expected a plain file")
                n_largest = max(n_largest, state.st_size)
    return n_largest


def _unpack(dataset: str, config: str | None, n_largest: int, where: str) -> None:
    """Let a process with limits write the data set into the library's cache."""
    limits = {"RLIMIT_FSIZE": FREE_BYTES + MAX_UNPACKED * n_largest} if n_largest else {}
    given = [dataset] if config is None else [dataset, config]
    command = limited_command(PROGRAM, given, half_of_memory(MAX_MEMORY), mapped=True, limits=limits)
    ended = run_limited(command, None)
    if ended.code != 0:
        what = "a file unpacks to far more than is on disk" if "File too large" in ended.err else None
        what = what or sentence_of_end(ended, None)
        raise InputError(f"{where}: the data set cannot be loaded ({visible(what)})")
