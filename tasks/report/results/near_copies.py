"""Documents of a corpus that are near copies of others, as a table."""

import pandas as pd

from dataworth.storage.corpus import CorpusStore
from dataworth.storage.ref import StoreRef
from dataworth.tasks.corpus.config import COPY_OF, OWNERS

__all__ = ["NEAR_COPIES", "near_copies_sentence", "near_copies_table"]

NEAR_COPIES = "near_copies.parquet"


def near_copies_table(corpus: StoreRef) -> pd.DataFrame | None:
    """`document_id`, `source`, `near_copy_of` (the first of its copies) and `owners`; None where nobody looked."""
    store = CorpusStore.open(corpus)
    if COPY_OF not in store.fields:
        return None
    columns = {name: store.column(name).to_pylist() for name in ("document_id", "source")}
    table = pd.DataFrame(columns | {name: store.field(name) for name in (COPY_OF, OWNERS)})
    return table[table[COPY_OF] != ""].reset_index(drop=True)


def near_copies_sentence(corpus: StoreRef) -> str | None:
    """How many there are; None where nobody looked."""
    table = near_copies_table(corpus)
    if table is None:
        return None
    of_others = int((table["source"] != table[OWNERS]).sum())
    return f"{len(table):,} documents, {of_others:,} of texts that several sources have: {NEAR_COPIES}"
