"""The bytes on disk, described in one place.

manifest.json                of every store: it counts once this is there; `files` has bytes and CRC-32C by block (see
                             storage/checksums.py) of each file that was there then, `crc32c` that of the manifest's
                             other content; in schema version 1 `tables` had the SHA-256 of each Parquet file, at most
withdrawals.jsonl            one line a withdrawn source or document: what, name, date
withdrawals.crc32c           a JSON record: the CRC-32C of the list as it is, and of the one before while it is replaced
corpora/<fingerprint>/       a CorpusStore, written once
    documents.parquet        one row a document: DOCUMENTS; where further fields are kept, also FIELDS
    windows.parquet          one row an example: WINDOWS
    rejected.parquet         optional: rows that could not be read and were left out: REJECTED
    tokens.bin               token ids of all documents, one after another: little-endian TOKEN_DTYPE; of a token whose
                             loss is not taken although it is beyond its window's `n_masked` the bitwise complement,
                             which is negative (the manifest then has `has_untaught`)
    manifest.json
layers/<fingerprint>/        a LayerStore, written once: float matrices by (layer, name)
    zarr.json                attributes: `layers`, the layer table
    layer_0000/<name>        one array a matrix; layers are numbered, their names never become paths. Sums by source
                             have, by group of documents, `gradient` (G, k) and `curvature` (G, k, k) of each layer, and
                             in the first `counts` and `curvature_counts` (G,) int64: windows that were summed, and
                             `contents`: the hashes of what was summed, (n_documents, 32) uint8
    manifest.json
scores/<fingerprint>/        a ScoreStore, written once
    passages.parquet         best documents of each query (rank 1, 2, …) and worst (rank -1, -2, …): PASSAGES
    layers.parquet           optional: what each layer gave to the passages' scores: LAYER_SCORES
    sources.parquet          sums by query and source: SOURCE_SUMS
    scores.zarr/             optional: scores (n_queries, n_documents) float32, query_id, document_id
    manifest.json
values/<fingerprint>/        a CoalitionStore, written once
    values.parquet           VALUES
    overlap.parquet          optional: which sources stand in for each other: OVERLAP
    documents.parquet        optional: what every document is worth to all queries together: DOCUMENT_VALUES
    manifest.json            `attributes` hold what is printed beside the values
games/<fingerprint>/         a UtilityStore, grows by files that never change
    <coalition>-<SHA-256>.safetensors    what a training added to the weights, until models are merged of it
    <sha-256>.parquet        utilities of some coalitions: UTILITIES
    manifest.json
owners/<fingerprint>/        written once by a compaction, instead of the one before
    owners.parquet           who provided the contents that no corpus names any more
    manifest.json
receipts/<date>.json         of compactions: what each removes, written before it begins, and when it ended
runs/                        nothing but locks: of the runs under way, by the fingerprint of their parameters
.<name>.lock                 beside a folder or file: the lock of its one writer
gradients/<fingerprint>/     a GradientStore, grows by segments
    manifest.json            what every row has in common: model, projection, tokenisation, layer table, dtype
    <segment fingerprint>/   a Zarr group, written shard by shard, by one writer
        gradients            (n_examples, n_columns), one chunk = one shard of whole rows, CRC-32C behind each; float32,
                             float16, bfloat16 as its bits in uint16, or int8 (the attribute `dtype` says which)
        scales               (n_examples, n_layers) float32, for int8: what a layer's columns of a row are multiplied by
        sketch_<m>           optional: (n_examples, m) float16, a narrow version of each row for a first look
        examples/<column>    EXAMPLE_COLUMNS, (n_examples,), chunked like the gradients
        contents/hash        (n_contents, 32) uint8: SHA-256 of a document's token ids, in row order
        contents/n_windows   (n_contents,) int32: rows each content owns; their running sum is its first row
"""

import numpy as np
import pyarrow as pa

__all__ = [
    "ALL_QUERIES",
    "CAUSES",
    "DOCUMENTS",
    "DOCUMENT_VALUES",
    "EXAMPLE_COLUMNS",
    "FIELDS",
    "LATER_VALUES",
    "LAYER_SCORES",
    "NO_CLASS",
    "OVERLAP",
    "PASSAGES",
    "REJECTED",
    "REJECTED_FILE",
    "SCHEMA_VERSION",
    "SHARD_BYTES",
    "SOURCE_SUMS",
    "SOURCE_SUMS_KIND",
    "TOKEN_DTYPE",
    "UTILITIES",
    "VALUES",
    "WINDOWS",
    "rows_per_shard",
]

# Of errors of values, each a column `error_…` of VALUES.
CAUSES = ("coalitions", "documents", "queries", "projection", "checkpoint")

# 2: records bear their own checksum, and manifests list every file of a store.
SCHEMA_VERSION = 2

TOKEN_DTYPE = np.dtype("<i4")

DOCUMENTS = pa.schema(
    [
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("n_prompt_characters", pa.int32(), nullable=False),
        pa.field("content", pa.binary(32), nullable=False),
        pa.field("n_tokens", pa.int32(), nullable=False),
        pa.field("n_windows", pa.int32(), nullable=False),
    ]
)

# Further fields of a document as a JSON object, keys sorted.
FIELDS = pa.field("fields", pa.string())

WINDOWS = pa.schema(
    [
        pa.field("document", pa.int32(), nullable=False),
        pa.field("token_start", pa.int64(), nullable=False),
        pa.field("n_tokens", pa.int32(), nullable=False),
        pa.field("n_masked", pa.int32(), nullable=False),
        pa.field("character_start", pa.int32(), nullable=False),
        pa.field("character_end", pa.int32(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),  # class of a classifier's example, else NO_CLASS
    ]
)

NO_CLASS = -1

# Why each row of a corpus was left out, with its file and line.
REJECTED = pa.schema([pa.field("reason", pa.string(), nullable=False)])
REJECTED_FILE = "rejected.parquet"

EXAMPLE_COLUMNS = {"n_tokens": np.dtype("int32"), "loss": np.dtype("float32")}

PASSAGES = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("relative_score", pa.float64(), nullable=False),
        pa.field("window_start", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
    ]
)

LAYER_SCORES = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("layer", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
    ]
)

SOURCE_SUMS = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("sum", pa.float64(), nullable=False),
        pa.field("sum_of_squares", pa.float64(), nullable=False),
        pa.field("n_documents", pa.int64(), nullable=False),
        pa.field("n_tokens", pa.int64(), nullable=False),
    ]
)

VALUES = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("standard_error", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("share", pa.float64()),
        pa.field("n_documents", pa.int64(), nullable=False),
        pa.field("n_tokens", pa.int64(), nullable=False),
        pa.field("game", pa.string(), nullable=False),
        pa.field("semivalue", pa.string(), nullable=False),
        pa.field("grouping", pa.string(), nullable=False),  # what `source` names: "source", "publisher>section", …
        pa.field("level", pa.int32(), nullable=False),  # of a nested grouping, 1 = coarsest; rows of one level add up
        # Parts of standard_error, which add up in quadrature; null where there is none of a kind, or it is not known.
        pa.field("error_coalitions", pa.float64()),  # of sampling coalitions
        pa.field("error_documents", pa.float64()),  # of the documents the source happened to contribute
        pa.field("error_queries", pa.float64()),  # of the queries asked
        pa.field("error_projection", pa.float64()),  # of the projection's seed
        pa.field("error_checkpoint", pa.float64()),  # of the checkpoint, or the seed it was trained with
        # What the value is: marginal (what the loss would gain without the source now), share (of `total`), certified
        # (of trainings that were made). Null in tables of before.
        pa.field("kind", pa.string()),
        # Nats that training took off the query's loss, measured: that of the base less that of the model; null where no
        # base is known.
        pa.field("total", pa.float64()),
    ]
)

# Columns that tables of VALUES of before do not have.
LATER_VALUES = ("kind", "total")

OVERLAP = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("other", pa.string(), nullable=False),
        pa.field("overlap", pa.float64()),  # -1 … 1; null where a source has no interaction with itself
    ]
)

# Nats, to all queries together; those of a source's documents add up to its value.
DOCUMENT_VALUES = pa.schema(
    [
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)

UTILITIES = pa.schema(
    [
        pa.field("coalition", pa.binary(), nullable=False),  # a bit for each player, packed
        pa.field("worth", pa.list_(pa.float64()), nullable=False),  # of every query, nats
    ]
)

# The attribute `kind` of a LayerStore that holds the sums of one source.
SOURCE_SUMS_KIND = "source sums"

# The id of the row that stands for all queries together: the sum of their scores.
ALL_QUERIES = "*"

# Measured: plain chunks of 4-16 MB read fastest; 8 MB leaves room for wide rows on either side.
SHARD_BYTES = 8 * 2**20


def rows_per_shard(n_columns: int, itemsize: int) -> int:
    """Rows of one shard: about SHARD_BYTES of them, at least one, at most 4096."""
    return max(1, min(4096, SHARD_BYTES // max(1, n_columns * itemsize)))
