"""Which files, places, servers and code a run may name: those that the environment of the process permits.

Each variable is a list with semicolons between its entries (an address of a bucket has a colon). Where one is set, it
holds for every run of the process, empty for nothing at all; where it is not, all that the process itself may reach is
permitted. But a run of a deployment, which a form or the API starts, calls no code by name that is not listed.
"""

import fnmatch
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from prefect.context import FlowRunContext

from dataworth.storage.errors import InputError
from dataworth.storage.local import LocalLocation
from dataworth.storage.locations import location_of
from dataworth.storage.place import Location
from dataworth.tasks.configuration import Configuration, Names
from dataworth.tasks.corpus.places import Place, place_of
from dataworth.tasks.visible import visible, without_password

__all__ = ["ADDRESSES", "INPUTS", "PROBLEMS", "RESULTS", "check_permitted", "named_by"]

# Folders and s3://bucket/prefix; hf:PATTERN for models and data sets of the Hugging Face hub.
INPUTS = "DATAWORTH_INPUTS"
# Folders and s3://bucket/prefix; what was written there may be read again.
RESULTS = "DATAWORTH_RESULTS"
# MODULE:FUNCTION, each as it stands.
PROBLEMS = "DATAWORTH_PROBLEMS"
# Of Dask schedulers and MLflow servers, each as it stands; those of the process itself need not be listed.
ADDRESSES = "DATAWORTH_ADDRESSES"
OWN_ADDRESSES = ("DATAWORTH_DASK", "MLFLOW_TRACKING_URI")
SEPARATOR = ";"

OWN_PROBLEMS = ("digits", "demo")
HUB = "hf:"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w-][\w.-]*)?")


def check_permitted(config: Configuration, prepared: object = None) -> None:
    """Refuse the run that begins if it names anything not permitted; runs that it starts itself are not checked again.

    Args:
        config: of the run.
        prepared: stores that only a calling flow gives.

    Raises:
        InputError: says which field, and what is permitted.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is not None and run.parent_task_run_id is not None:
        return
    deployed = run is not None and run.deployment_id is not None
    if deployed and prepared is not None:
        raise InputError("prepared: is for flows that call this one; leave it empty")
    for field, kind, value in named_by(config):
        if kind is Names.CODE:
            _check_code(field, value, deployed)
        else:
            RULES[kind](field, value)


def named_by(config: Configuration, within: str = "") -> Iterator[tuple[str, Names, str]]:
    """(dotted name, kind, value) for each value of every field that is given and marked with a kind of `Names`."""
    for name, field in type(config).model_fields.items():
        given = getattr(config, name)
        if isinstance(given, Configuration):
            yield from named_by(given, f"{within}{name}.")
        for kind in field.metadata:
            if isinstance(kind, Names) and given is not None:
                for value in [given] if isinstance(given, str) else given:
                    yield f"{within}{name}", kind, value


def _listed(variable: str) -> list[str] | None:
    """The entries of a variable; None where it is not set."""
    text = os.environ.get(variable)
    return None if text is None else [entry.strip() for entry in text.split(SEPARATOR) if entry.strip()]


def _refusal(field: str, value: str, permitted: Sequence[str] | None, variable: str) -> InputError:
    said = without_password(", ".join(permitted or [])) or "nothing"
    return InputError(f"{field} {visible(without_password(value))}: not permitted here; {variable} permits {said}")


def _check_file(field: str, value: str, *, with_links: bool = True) -> None:
    """A file or folder is within the roots, and what links in it lead to."""
    inputs = _listed(INPUTS)
    if inputs is None:
        return
    roots = [_root(entry) for entry in [*inputs, *(_listed(RESULTS) or [])] if not entry.startswith(HUB)]
    if not _is_within(location_of(value), roots):
        raise _refusal(field, value, inputs, INPUTS)
    for link in _links(value) if with_links else ():
        if not _is_within(link, roots):
            raise _refusal(f"{field} {visible(value)}, in which the link", str(link), inputs, INPUTS)


def _check_documents(field: str, value: str) -> None:
    place = place_of(value)
    if place.is_of_hub:
        _check_hub(field, place.name.removeprefix(HUB).partition(":")[0], value)
        return
    # First: whether a pattern fits a file elsewhere is nobody's to know.
    _check_file(field, place.folder, with_links=False)
    if not place.is_pattern:
        _check_file(field, place.name)
    elif _listed(INPUTS) is not None:
        _check_pattern(field, place)


def _check_pattern(field: str, place: Place) -> None:
    """Said alike of what fits no file and of what fits one elsewhere."""
    try:
        if ".." in Path(place.name).parts:
            raise InputError("leads upwards")
        for name in place.files:
            _check_file(field, name)
    except InputError:
        permitted = without_password(", ".join(_listed(INPUTS) or []))
        raise InputError(
            f"{field} {visible(place.name)}: fits no file that is permitted here; {INPUTS} permits {permitted}"
        ) from None


def _check_model(field: str, value: str) -> None:
    seen: set[str] = set()
    base: str | None = value
    while base is not None and base not in seen:
        said = f"{field} {visible(value)}, adapters of" if seen else field
        if _is_of_hub(base):
            _check_hub(said, base, base)
        else:
            _check_file(said, base)
        seen.add(base)
        base = _adapted(base)


def _is_of_hub(name: str) -> bool:
    """The same name is of the Hugging Face hub where there is no such folder."""
    return HUB_NAME.fullmatch(name) is not None and not os.path.lexists(name)


def _check_hub(field: str, name: str, value: str) -> None:
    """Of a data set in a folder, too, which is none of the hub: its README may name files anywhere."""
    inputs = _listed(INPUTS)
    if inputs is None:
        return
    patterns = [entry for entry in inputs if entry.startswith(HUB)]
    if not _is_of_hub(name) or not any(fnmatch.fnmatchcase(f"{HUB}{name}", pattern) for pattern in patterns):
        raise _refusal(field, value, inputs, INPUTS)


def _adapted(name: str) -> str | None:
    """The checkpoint that a folder of adapters names as the one they were trained on."""
    file = Path(name) / "adapter_config.json"
    try:
        base = json.loads(file.read_bytes())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):  # not there, or said by whoever loads the model
        return None
    return base if isinstance(base, str) else None


def _check_place(field: str, value: str) -> None:
    places = _listed(RESULTS)
    if places is not None and not _is_within(location_of(value), [_root(entry) for entry in places]):
        raise _refusal(field, value, places, RESULTS)


def _check_address(field: str, value: str) -> None:
    listed = _listed(ADDRESSES)
    own = [os.environ.get(variable) for variable in OWN_ADDRESSES]
    if listed is not None and value.rstrip("/") not in {entry.rstrip("/") for entry in [*listed, *own] if entry}:
        raise _refusal(field, value, listed, ADDRESSES)


def _check_code(field: str, value: str, deployed: bool) -> None:
    listed = _listed(PROBLEMS)
    if value in OWN_PROBLEMS or (listed is None and not deployed):
        return
    if value not in (listed or []):
        raise _refusal(field, value, [*OWN_PROBLEMS, *(listed or [])], PROBLEMS)


RULES: dict[Names, Callable[[str, str], None]] = {
    Names.FILE: _check_file,
    Names.DOCUMENTS: _check_documents,
    Names.MODEL: _check_model,
    Names.PLACE: _check_place,
    Names.ADDRESS: _check_address,
}


def _root(entry: str) -> Location:
    root = location_of(entry)
    if isinstance(root, LocalLocation) and not root.is_absolute():
        raise InputError(f"{entry}: expected an absolute folder or s3://bucket/prefix in {INPUTS} and {RESULTS}")
    return root


def _is_within(place: Location, roots: Sequence[Location]) -> bool:
    """The place, once every link and `..` on the way to it is followed, is a root or below one."""
    return any(_is_below(place, root) for root in roots)


def _is_below(place: Location, root: Location) -> bool:
    if isinstance(place, LocalLocation) and isinstance(root, LocalLocation):
        return Path(os.path.realpath(place)).is_relative_to(os.path.realpath(root))
    return f"{place}/".startswith(f"{str(root).rstrip('/')}/")


def _links(folder: str) -> Iterator[Location]:
    """Every link in a folder, at any depth."""
    for within, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(within, name)
            if os.path.islink(path):
                yield location_of(path)
