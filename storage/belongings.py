"""What in a root of stores belongs to withdrawn documents, and to whom the rest belongs."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dataworth.storage.coalitions import CoalitionStore
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.gradients import ALONG
from dataworth.storage.layers import LayerStore
from dataworth.storage.locations import Place, StoreFolders
from dataworth.storage.manifest import is_complete, read_manifest
from dataworth.storage.owners import Owner, kept_owners
from dataworth.storage.place import Location
from dataworth.storage.schema import SOURCE_SUMS_KIND
from dataworth.storage.scores import ScoreStore
from dataworth.storage.withdrawals import Withdrawals

__all__ = ["Belongings", "belonging", "finished_stores"]


@dataclass
class Belongings:
    """Of one root of stores.

    Args:
        gone, live: owners of contents, withdrawn and not, by corpora and by the record of those that were removed.
        live_of_removed: those of `live` that are named by corpora that go.
        texts: SHA-256 of each withdrawn text that is there, in hexadecimal digits.
        stores: kind → folders that hold something of a withdrawn document, or were made of it.
        n_stores, n_documents: that were looked through.
    """

    gone: set[Owner] = field(default_factory=set)
    live: set[Owner] = field(default_factory=set)
    live_of_removed: set[Owner] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)
    stores: dict[str, list[Location]] = field(default_factory=dict)
    n_stores: int = 0
    n_documents: int = 0

    @property
    def dead(self) -> set[bytes]:
        """Contents that nobody provides any more."""
        return {content for content, _, _ in self.gone} - {content for content, _, _ in self.live}


def finished_stores(folder: Location) -> Iterator[Location]:
    """Folders of finished stores in a folder of stores."""
    return (path for path in folder.folders() if is_complete(path))


def belonging(root: Place, withdrawn: Withdrawals) -> Belongings:
    """Find what belongs to withdrawn documents, in all stores but gradients, whose rows are known by their contents.

    Args:
        root: of the stores.
        withdrawn: its list of withdrawals.

    Raises:
        StoreDamagedError: what would tell whose something is, is damaged.
    """
    belongings, folders = Belongings(), StoreFolders(root)
    for owner in kept_owners(root):
        (belongings.gone if withdrawn.covers(*owner[1:]) else belongings.live).add(owner)
    corpora = [_of_corpus(CorpusStore(path), withdrawn, belongings) for path in finished_stores(folders.corpora)]
    touched = [corpus for corpus in corpora if corpus is not None]
    belongings.n_stores += len(corpora)
    names = {corpus.fingerprint for corpus in touched}
    contents = {corpus.contents_fingerprint for corpus in touched}
    dead = np.asarray(sorted(belongings.dead), "S32")

    def chosen(kind: str, belongs: Any) -> list[Location]:
        paths = list(finished_stores(getattr(folders, kind)))
        belongings.n_stores += len(paths)
        return [path for path in paths if belongs(path, dict(read_manifest(path).get("attributes", {})))]

    def scored(path: Location, attributes: dict[str, Any]) -> bool:
        own = {attributes.get("corpus"), attributes.get("trained")}  # who is scored, and who was trained on
        return bool(own & names) or _names_withdrawn(ScoreStore(path), withdrawn)

    scores = chosen("scores", scored)
    of_scores = {path.name for path in scores}

    def played(_: Location, attributes: dict[str, Any]) -> bool:
        return attributes.get("scores") in of_scores or attributes.get("corpus") in names | contents

    def valued(path: Location, attributes: dict[str, Any]) -> bool:
        return attributes.get("scores") in of_scores or _values_withdrawn(CoalitionStore(path), withdrawn)

    def fitted(path: Location, attributes: dict[str, Any]) -> bool:
        of_corpus = attributes.get("corpus") in names | contents
        return of_corpus or (attributes.get("kind") == SOURCE_SUMS_KIND and _sums_of(LayerStore(path), dead))

    belongings.stores = {
        "corpora": [corpus.path for corpus in touched],
        "layers": chosen("layers", fitted),
        "scores": scores,
        "values": chosen("values", valued),
        "games": chosen("games", played),
        "gradients": [path for path in finished_stores(folders.gradients) if _along(path, names | contents)],
    }
    return belongings


def _along(path: Location, corpora: set[str]) -> bool:
    """Rows that are scores, under a curvature that was fitted on one of some corpora."""
    attributes = dict(read_manifest(path).get("attributes", {}))
    return ALONG in attributes and attributes.get("corpus") in corpora


def _of_corpus(corpus: CorpusStore, withdrawn: Withdrawals, belongings: Belongings) -> CorpusStore | None:
    """Add the owners a corpus names; the corpus where it holds a withdrawn document."""
    ids, sources = (corpus.column(name).to_pylist() for name in ("document_id", "source"))
    owners = list(zip(corpus.contents.tolist(), ids, sources, strict=True))
    belongings.n_documents += len(owners)
    gone = [number for number, (_, *name) in enumerate(owners) if withdrawn.covers(*name)]
    belongings.gone.update(owners[number] for number in gone)
    live = set(owners) - {owners[number] for number in gone}
    belongings.live |= live
    if not gone:
        return None
    belongings.live_of_removed |= live
    for document in corpus.documents(gone):
        belongings.texts.add(hashlib.sha256(document["text"].encode()).hexdigest())
    return corpus


def _names_withdrawn(scores: ScoreStore, withdrawn: Withdrawals) -> bool:
    passages = scores.passages
    named = zip(passages.column("document_id").to_pylist(), passages.column("source").to_pylist(), strict=True)
    return any(withdrawn.covers(*name) for name in named) or _sources_withdrawn(
        scores.source_sums.column("source").to_pylist(), withdrawn
    )


def _values_withdrawn(values: CoalitionStore, withdrawn: Withdrawals) -> bool:
    documents = values.documents
    if documents is not None:
        named = zip(documents.column("document_id").to_pylist(), documents.column("source").to_pylist(), strict=True)
        if any(withdrawn.covers(*name) for name in named):
            return True
    by_source = values.values.filter(np.asarray(values.values.column("grouping").to_pylist()) == "source")
    return _sources_withdrawn(by_source.column("source").to_pylist(), withdrawn)


def _sources_withdrawn(sources: Iterable[str], withdrawn: Withdrawals) -> bool:
    return any(withdrawn.covers_source(source) for source in set(sources))


def _sums_of(store: LayerStore, dead: np.ndarray) -> bool:
    """Sums by source that a withdrawn content is part of; those of other sources stay."""
    held = np.frombuffer(store.matrix(store.layers[0].name, "contents").tobytes(), "S32")
    return bool(np.isin(held, dead).any())
