"""For a notebook: index documents, score them for queries, value their sources. No Prefect, no server.

    import dataworth as dw

    rows = dw.index(model, tokenizer, documents)
    scores = rows.scores(queries).to_pandas()
    valuation = dw.value(model, tokenizer, documents, queries, projection={"rank": 64})
    valuation.sources

What is made is kept in a folder that goes with the last object that needs it, or in `store`, where later calls and the
other doors find it again.
"""

import html
import json
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from dataworth.config import CorpusRunConfig, ValueConfig
from dataworth.preparing import PLAIN, prepared_stores, refuse_nothing_kept, store_folder
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.storage.gradients import GradientStore
from dataworth.storage.ref import StoreRef
from dataworth.storage.spelling import as_field, spelled
from dataworth.storage.zarr_arrays import array_at
from dataworth.tasks.model.alike import refuse_other_tokenizers
from dataworth.tasks.model.config import folders_of, with_folders
from dataworth.tasks.model.loading import load
from dataworth.tasks.report.account import Account
from dataworth.tasks.report.results.folder import read_account, read_candidates, read_tokens
from dataworth.tasks.report.results.valuation import ValuationParts
from dataworth.tasks.report.steps import publish_valuation
from dataworth.valuing import refuse_unlike, valued

if TYPE_CHECKING:
    import xarray

__all__ = ["Rows", "Scores", "Valuation", "index", "value"]

# What a notebook needs no names for: options of the other doors that it has none of.
ELSEWHERE = ("results", "tracking", "events", "overlap")
# Processes would run the caller's script once more, unless it is written for that.
IN_PROCESS = {"cluster": {"processes": False}}


@spelled(as_field)
def index(model: Any, tokenizer: Any, documents: Any, /, *, store: str | Path | None = None, **options: Any) -> "Rows":
    """Compute, project and keep the gradient of every window of every document.

    Args:
        model: a transformers model, which is left as it is; or the name or folder of a checkpoint, or several.
        tokenizer: of a model that is given itself; None for a checkpoint, which has its own.
        documents: dicts with `id`, `source` and `text`; a pandas DataFrame or a datasets.Dataset with these columns; or
            what `--corpus` takes: a path, or several.
        store: folder to keep everything in; None: a folder that goes with the object returned.
        options: of the configuration, by name: `projection={"rank": 64}`.

    Raises:
        InputError: something given cannot be used.
    """
    place = _Place(store)
    given = _given(place, model, tokenizer, documents, options)
    config = _checked(CorpusRunConfig, given)
    refuse_nothing_kept(config)
    refuse_other_tokenizers(config.model.checkpoints)
    prepared = [prepared_stores(one, PLAIN) for one in config.by_checkpoint]
    stores = [PLAIN.index(one, stores) for one, stores in zip(config.by_checkpoint, prepared, strict=True)]
    return Rows(config, prepared[0].corpus, stores, place)


@spelled(as_field)
def value(
    model: Any, tokenizer: Any, documents: Any, queries: Any, /, *, store: str | Path | None = None, **options: Any
) -> "Valuation":
    """Value every document and source for some queries.

    Args:
        model, tokenizer, documents, store: as for `index`.
        queries: dicts with `id`, `prompt` and, where it is not the model that completes it, `completion`; texts, which
            are prompts; or the path of a file.
        options: of the configuration, by name: `sources={"game": "newton"}`, `model={"include": ["*.mlp.*"]}`,
            `queries={"max_new_tokens": 8}`; what comes first is given by position, so that these names are free.
            `candidates`, documents that the model was not trained on, are given as documents are, with more to say of
            them in a dict: `candidates={"files": documents, "epochs": 1}`.

    Raises:
        InputError: something given cannot be used.
    """
    place = _Place(store)
    asked = {"queries": _queries(place, queries, options), **_candidates(place, options)}
    given = _given(place, model, tokenizer, documents, options) | asked
    return _valued(place, _merged(IN_PROCESS, given))


@dataclass(frozen=True)
class Rows:
    """Projected gradients of documents.

    Args:
        config: they were made by.
        corpus: the documents, cut into windows.
        stores: of gradients, one for each checkpoint.
    """

    config: CorpusRunConfig
    corpus: StoreRef
    stores: list[StoreRef]
    _place: "_Place"

    def __len__(self) -> int:
        return CorpusStore.open(self.corpus).n_documents

    def __getitem__(self, document: str) -> np.ndarray:
        """(n_windows, n_columns) gradients of a document's windows under the first checkpoint.

        Raises:
            KeyError: there is no such document.
        """
        corpus = CorpusStore.open(self.corpus)
        numbers = [number for number, name in enumerate(corpus.column("document_id").to_pylist()) if name == document]
        if not numbers:
            raise KeyError(document)
        return GradientStore.open(self.stores[0]).rows_of(corpus.contents[numbers])[0]

    @spelled(as_field)
    def scores(self, queries: Any, /, **options: Any) -> "Scores":
        """Influence of every document on every query.

        Args:
            queries: as for `value`.
            options: of the configuration: `scoring={"kind": "cosine"}`, `curvature`.
        """
        return self.value(queries, **_merged({"scoring": {"save_matrix": True}}, options)).scores

    @spelled(as_field)
    def value(self, queries: Any, /, **options: Any) -> "Valuation":
        """Value every document and source for some queries; see `dataworth.value`."""
        config = _merged(self.config.model_dump(mode="json"), IN_PROCESS)
        named = {**_candidates(self._place, options), "queries": _queries(self._place, queries, options)}
        given = _merged(config, {**options, **named})
        return _valued(self._place, given)


@dataclass(frozen=True)
class Scores:
    """Influence of documents on queries, in nats of a query's loss (of `cosine`: none).

    Args:
        values: (n_queries, n_documents).
        queries: their ids.
        documents: their ids.
    """

    values: np.ndarray
    queries: list[str]
    documents: list[str]

    def to_pandas(self) -> pd.DataFrame:
        """The scores as a table: one row per query, one column per document."""
        return pd.DataFrame(self.values, index=pd.Index(self.queries, name="query"), columns=self.documents)

    def to_xarray(self) -> "xarray.DataArray":
        """The scores with the dimensions `query` and `document`; needs the package xarray."""
        import xarray

        labels = {"query": self.queries, "document": self.documents}
        return xarray.DataArray(self.values, coords=labels, dims=("query", "document"), name="score")


class Valuation:
    """What each document and source is worth to the queries.

    Args:
        parts: what it was made from.
        folder: what it left there, as `--results` of the other doors.
    """

    def __init__(self, parts: ValuationParts, folder: Path, place: "_Place") -> None:
        self.parts, self.folder, self._place = parts, folder, place

    @property
    def sources(self) -> pd.DataFrame:
        """The table `sources.parquet`: one row per query and source; query "*" is all queries together."""
        return pd.read_parquet(self.folder / "sources.parquet")

    @property
    def documents(self) -> pd.DataFrame:
        """The table `documents.parquet`: the best and worst passages of each query."""
        return pd.read_parquet(self.folder / "documents.parquet")

    @property
    def candidates(self) -> pd.DataFrame:
        """The table `candidates.parquet`: what each source of documents that were not trained on would add.

        Raises:
            InputError: there were none.
        """
        found = read_candidates(str(self.folder))
        if found is None:
            raise InputError("no candidates were given: pass candidates=[{...}, ...]")
        return found

    @property
    def tokens(self) -> pd.DataFrame:
        """The table `tokens.parquet`: of the best passages, each token's part of the score, and each of the answer's.

        Raises:
            InputError: it was not told.
        """
        found = read_tokens(str(self.folder))
        if found is None:
            raise InputError('which tokens taught was not told: it is with scoring={"tokens": 3}, of influence as dot')
        return found

    @property
    def scores(self) -> Scores:
        """The scores of every document for every query.

        Raises:
            InputError: they were not kept.
        """
        import zarr

        path = self.folder / "scores.zarr"
        if not path.is_dir():
            raise InputError('the matrix of scores was not kept: pass scoring={"save_matrix": True}')
        group = zarr.open_group(path, mode="r")
        values, queries, documents = (
            np.asarray(array_at(group, name)[...]) for name in ("scores", "query_id", "document_id")
        )
        return Scores(values, queries.tolist(), documents.tolist())

    def report(self, path: str | Path) -> Path:
        """Write the page of the valuation."""
        return Path(shutil.copyfile(self.folder / "report.html", path))

    def show(self) -> None:
        """Show the page where a notebook can; else print the sources."""
        try:
            from IPython.display import HTML, display
        except ImportError:
            print(self)
            return
        page = (self.folder / "report.html").read_text(encoding="utf-8").replace("&", "&amp;").replace('"', "&quot;")
        display(HTML(f'<iframe srcdoc="{page}" sandbox width="100%" height="700"></iframe>'))

    @property
    def account(self) -> Account:
        """What the numbers are: their unit, their total, and how much of it they account for."""
        return read_account(str(self.folder))

    @spelled(as_field)
    def _repr_html_(self) -> str:
        said = "".join(f"<p>{html.escape(line)}</p>" for line in self.account.sentences())
        return said + str(_together(self.sources, self.account).to_html(index=False, escape=True))

    @spelled(as_field)
    def __repr__(self) -> str:
        table = _together(self.sources, self.account).to_string(index=False)
        return "\n".join([*self.account.sentences(), str(table)])


def _together(sources: pd.DataFrame, account: Account) -> pd.DataFrame:
    """Of all queries together, what a person looks at first, in nats a query."""
    shown = sources[sources["query_id"] == "*"].sort_values("value", ascending=False)
    pairs = zip(shown["value"], shown["share"], strict=True)
    parts = {account.part: [account.part_of(*pair) for pair in pairs], account.unit: shown["value"] / account.n_queries}
    ends = {end: shown[end] / account.n_queries for end in ("low", "high")}
    return pd.DataFrame({"source": shown["source"], **parts, **ends, **shown[["n_documents", "n_tokens"]]})


class _Place:
    """A folder for what was given as objects, and for the stores where nobody named one; it goes with this object."""

    def __init__(self, store: str | Path | None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="dataworth-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._n = 0
        self.store = str(store) if store is not None else str(self._folder / "store")

    def new(self, name: str) -> Path:
        """A path in it that nothing has yet."""
        self._n += 1
        return self._folder / str(self._n) / name


def _given(place: _Place, model: Any, tokenizer: Any, documents: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    for name in ELSEWHERE:
        if name in options:
            raise InputError(f"{name}: is of the command line and the flows, a notebook has none")
    corpus = options.get("corpus", {})
    given = {"model": _merged({"name": _checkpoints(place, model, tokenizer)}, options.get("model", {}))}
    given["corpus"] = _merged({"files": _files(place, documents, "documents")}, corpus)
    return with_folders({**options, **given, "store": place.store})


def _candidates(place: _Place, options: Mapping[str, Any]) -> dict[str, Any]:
    """Documents by themselves, or as `files` of what is said of them."""
    given = options.get("candidates")
    told = dict(given) if isinstance(given, Mapping) else {"files": given}
    rows = told.pop("files", None)
    if isinstance(rows, str | Path):
        told["files"] = [str(rows)]
    elif rows is not None:
        listed = _rows(rows, "candidates")
        told["files"] = _files(place, listed, "candidates") if listed else []
    return {"candidates": told}


def _checkpoints(place: _Place, model: Any, tokenizer: Any) -> list[str]:
    """Names or folders of checkpoints; a model in memory is written to one."""
    if isinstance(model, str | Path):
        return folders_of(str(model))
    if isinstance(model, list | tuple):
        return [folder for name in model for folder in folders_of(str(name))]
    if not hasattr(model, "save_pretrained"):
        raise InputError(
            f"model: {type(model).__name__}; expected a transformers model, or a checkpoint's name or folder"
        )
    if not hasattr(tokenizer, "save_pretrained"):
        raise InputError("tokenizer: a model that is given itself needs its tokenizer, too")
    folder = place.new("model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return [str(folder)]


def _queries(place: _Place, queries: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(queries, str | Path) and isinstance(queries, Iterable):
        queries = [
            {"id": f"q{number}", "prompt": query} if isinstance(query, str) else query
            for number, query in enumerate(_rows(queries, "queries"))
        ]
    (file,) = _files(place, queries, "queries")
    return _merged({"file": file}, options.get("queries", {}))


def _files(place: _Place, rows: Any, what: str) -> list[str]:
    """Paths as they are; anything else is written to a file."""
    if isinstance(rows, str | Path):
        return [str(rows)]
    if isinstance(rows, list | tuple) and rows and all(isinstance(row, str | Path) for row in rows):
        return [str(row) for row in rows]
    path = place.new(f"{what}.jsonl")
    path.parent.mkdir()
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(dict(row), ensure_ascii=False)}\n" for row in _rows(rows, what))
    return [str(path)]


def _rows(rows: Any, what: str) -> list[Any]:
    if isinstance(rows, pd.DataFrame):
        return list(rows.to_dict("records"))
    try:
        return list(rows)
    except TypeError:
        expected = "a list of dicts, a DataFrame, a Dataset or a path"
        raise InputError(f"{what}: {type(rows).__name__}; expected {expected}") from None


def _merged(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, where the second's count."""
    both = dict(one)
    for name, setting in two.items():
        inner = both.get(name)
        both[name] = _merged(inner, setting) if isinstance(inner, Mapping) and isinstance(setting, Mapping) else setting
    return both


def _checked(kind: Any, given: Mapping[str, Any]) -> Any:
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        said = first["msg"].removeprefix("Value error, ")
        raise InputError(": ".join([*filter(None, [".".join(map(str, first["loc"]))]), said])) from None


def _valued(place: _Place, given: Mapping[str, Any]) -> Valuation:
    folder = place.new("results")
    config = _checked(ValueConfig, {**given, "results": str(folder)})
    refuse_unlike(config)
    config = config.settled(load(config.model.checkpoints[0]).n_classes is not None)
    parts = valued(config, store_folder(config), PLAIN)
    folder.parent.mkdir(exist_ok=True)
    publish_valuation(str(folder), parts, config.sources.confidence)
    return Valuation(parts, folder, place)
