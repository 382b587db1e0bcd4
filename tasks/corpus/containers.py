"""What kind of file a corpus is given: rows, text, or a container that is not read; by its name and its first bytes."""

from pathlib import Path

from dataworth.storage.errors import InputError
from dataworth.tasks.corpus.packed import packing_of

__all__ = ["HEAD_BYTES", "ROWS", "TEXTS", "refuse_container", "refuse_content", "suffix"]

# Files of rows, each a document.
ROWS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet", ".arrow")
# Those of them that may be packed, and files of text, each a document, where a file is named by itself.
LINES = (".jsonl", ".ndjson", ".json", ".csv")
TEXTS = (".txt", ".md")

HEAD_BYTES = 512

PACKED = "unpack it first"
AS_ROWS = "write its documents as .jsonl or .parquet"
AS_TEXT = "save its text as .txt"
LEAVE_OUT = "it holds no text; leave it out"

# Suffix → what it is, and what to do. JSON and tables are text as well, but not the text that anybody trained on.
CONTAINERS = {
    **dict.fromkeys((".gz", ".tgz"), ("packed by gzip", PACKED)),
    **dict.fromkeys((".bz2", ".tbz2"), ("packed by bzip2", PACKED)),
    **dict.fromkeys((".xz", ".txz", ".lzma"), ("packed by xz", PACKED)),
    **dict.fromkeys((".zst", ".zstd"), ("packed by zstd", PACKED)),
    **dict.fromkeys((".lz4", ".snappy", ".br"), ("packed", PACKED)),
    **dict.fromkeys((".zip", ".tar", ".7z", ".rar", ".jar", ".whl"), ("an archive of files", PACKED)),
    ".geojson": ("JSON that is not one object a line", f"{AS_ROWS} (or name it .txt)"),
    ".ipynb": ("a notebook", f"{AS_ROWS} (or name it .txt)"),
    **dict.fromkeys((".tsv", ".tab"), ("a table whose cells are kept apart by tabs", "write it as .csv or .parquet")),
    **dict.fromkeys((".xls", ".xlsx", ".ods"), ("a spreadsheet", "write it as .csv or .parquet")),
    **dict.fromkeys((".feather", ".ipc"), ("an Arrow file", AS_ROWS)),
    **dict.fromkeys((".avro", ".orc", ".tfrecord", ".warc", ".lance"), ("a container of records", AS_ROWS)),
    **dict.fromkeys((".db", ".sqlite", ".sqlite3", ".duckdb"), ("a database", AS_ROWS)),
    **dict.fromkeys((".npy", ".npz", ".h5", ".hdf5"), ("arrays of numbers", AS_ROWS)),
    **dict.fromkeys((".bin", ".idx", ".mds"), ("binary, as tokenised data sets are", AS_ROWS)),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth", ".ckpt"), ("a pickle, which is never loaded", AS_ROWS)),
    **dict.fromkeys((".safetensors", ".gguf", ".onnx"), ("the weights of a model", LEAVE_OUT)),
    **dict.fromkeys((".pdf", ".ps", ".djvu", ".epub", ".mobi"), ("a set page", AS_TEXT)),
    **dict.fromkeys((".doc", ".docx", ".odt", ".ppt", ".pptx", ".odp", ".rtf"), ("an office document", AS_TEXT)),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff"), ("a picture", LEAVE_OUT)),
    **dict.fromkeys((".mp3", ".wav", ".flac", ".ogg", ".mp4", ".mkv", ".webm", ".mov"), ("sound or film", LEAVE_OUT)),
    **dict.fromkeys((".exe", ".dll", ".so", ".dylib", ".pyc", ".wasm"), ("a program", LEAVE_OUT)),
}  # fmt: skip

# First bytes → what it is, and what to do.
MAGIC = {
    b"\x1f\x8b": ("packed by gzip", PACKED),
    b"\xfd7zXZ\x00": ("packed by xz", PACKED),
    b"\x28\xb5\x2f\xfd": ("packed by zstd", PACKED),
    b"\x04\x22\x4d\x18": ("packed by lz4", PACKED),
    b"PK\x03\x04": ("a zip archive, as office documents are, too", PACKED),
    b"7z\xbc\xaf\x27\x1c": ("an archive of files", PACKED),
    b"ARROW1\x00": ("an Arrow file", AS_ROWS),
    b"Obj\x01": ("an Avro container", AS_ROWS),
    b"SQLite format 3\x00": ("a database", AS_ROWS),
    b"\x93NUMPY": ("arrays of numbers", AS_ROWS),
    b"%PDF-1.": ("a PDF", AS_TEXT),
    b"%PDF-2.": ("a PDF", AS_TEXT),
    b"\x89PNG": ("a picture", LEAVE_OUT),
    b"\xff\xfe": ("text in UTF-16 or UTF-32", "save it as UTF-8"),
    b"\xfe\xff": ("text in UTF-16", "save it as UTF-8"),
    b"\x00\x00\xfe\xff": ("text in UTF-32", "save it as UTF-8"),
}
# These begin with letters, as a text may, too, which has no other control characters than those of lines and pages.
LETTERS = {b"BZh": ("packed by bzip2", PACKED), b"PAR1": ("Parquet", "name it .parquet")}
CONTROL = frozenset(range(32)) - frozenset(b"\t\n\v\f\r\x1b")


def suffix(path: Path) -> str:
    """The last suffix, in lower case; of packed rows, the one before it."""
    if packing_of(path) is not None and path.with_suffix("").suffix.lower() in LINES:
        return path.with_suffix("").suffix.lower()
    return path.suffix.lower()


def refuse_container(path: Path, where: str) -> None:
    """Refuse a file whose name says that it is neither text nor rows.

    Args:
        path: of the file.
        where: its name, for messages.

    Raises:
        InputError: what it is, and what to do.
    """
    known = CONTAINERS.get(suffix(path))
    if known is not None:
        what, remedy = known
        raise InputError(f"{where}: is {what}, which is not read; {remedy}")


def refuse_content(head: bytes, where: str) -> None:
    """Refuse content that begins as no text does, whatever its name.

    Args:
        head: its first bytes, `HEAD_BYTES` or all that there are.
        where: for messages.

    Raises:
        InputError: what it is, and what to do.
    """
    binary = not CONTROL.isdisjoint(head[:HEAD_BYTES])
    for magic, (what, remedy) in {**MAGIC, **(LETTERS if binary else {})}.items():
        if head.startswith(magic):
            raise InputError(f"{where}: its content is {what}, not text in UTF-8; {remedy}")
    if b"\x00" in head[:HEAD_BYTES]:
        raise InputError(f"{where}: its content is binary (a NUL byte), not text in UTF-8; leave it out or convert it")
