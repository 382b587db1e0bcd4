"""Corpus and query files as nobody should write them, the same for the same seed."""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.reference.checkpoints import TEXTS

__all__ = ["ALIKE", "NAMES", "Case", "case"]

Rows = list[dict[str, Any]]

# Ids and sources that are allowed, however unwelcome; no two look the same.
NAMES = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</pre></td><h1>x", "[x](javascript:alert(1))",
    "![x](http://x.example/y.png)", "| a | b |", "`x` **y** ~~z~~", "=HYPERLINK(\"http://x.example\")", "+1", "-1",
    "@x", "\tx", "\ry", "../../../etc/passwd", "/etc/passwd", "C:\\x", "..", ".", "a\nb", "c\r\nd", "b\x00", "a",
    "\x1b[2J", "\u202egnp.exe", "\u2066z", "\u200f", "x" * 10_000, "語" * 200, "$x^2$", "$\\frac{", "{{ 7 * 7 }}",
    "{% raw %}", "%s %d {0}", "nul", "a > b",
    "e\u0301", "\U0001f468\u200d\U0001f469", "'; drop table x; --", "\ufeffw", "*.x",
]  # fmt: skip

# Each looks the same as one of them.
ALIKE = ["\xe9", "a ", "\u00a0a", "a\u200b", "a \x00", "a\tb", "x", "+1\u2060", "..\ufeff"]

JUNK: list[Any] = [
    None, True, False, 0, -1, 10**30, 10**400, 1.5, 1e308, float("nan"), float("inf"), "", " \n", [], ["x"], {},
    {"id": "x"}, "x" * 10_001, "\ud800", "\udfff x", "9" * 5000, "\u0663",
]  # fmt: skip
KEYS = ["", "id ", "ID", "text\x00", "\u202e", "a" * 5000, "'", '"', "a.b", "\ud800", "source>x", "__class__", "None"]


@dataclass(frozen=True)
class Case:
    """One file or folder.

    Args:
        path: of it.
        kind: corpus, classes or queries.
        made: how, for messages.
        expected: (id, source or prompt, text or completion) of all rows, where the file is sound; None where it may be
            refused, or hold something else.
        options: fields of the configuration.
    """

    path: Path
    kind: str
    made: str
    expected: list[tuple[str, str, str]] | None
    options: dict[str, Any] = field(default_factory=dict)


def case(seed: int, folder: Path, kind: str) -> Case:
    """Write the case of a seed into a folder.

    Args:
        seed: decides everything.
        folder: empty.
        kind: corpus, classes or queries.
    """
    draw = random.Random(seed)
    rows = _rows(draw, kind)
    options = {} if kind == "queries" else {"max_length": draw.choice([2, 3, 16, 64])}
    if kind == "corpus" and draw.random() < 0.3:
        options["fields"] = ["year"]
    ways = {"jsonl": _jsonl} if kind == "queries" else {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet}
    if kind == "corpus" and draw.random() < 0.15 and not options.get("fields"):
        return _folder(draw, folder, options)
    suffix = draw.choice(list(ways))
    sound = draw.random() < 0.25
    if suffix == "csv" and sound:  # which has no way to write it but as it is
        rows = [{name: value.replace("\x00", "") for name, value in row.items()} for row in rows]
    content, made = ways[suffix](draw, rows, sound)
    if not sound and (made == "" or draw.random() < 0.2):
        mutation = draw.choice(BYTES)
        content, made = mutation(draw, content), f"{made} {mutation.__name__}"
        suffix = draw.choice(
            [suffix] * 8 + ["jsonl", "csv", "parquet", "JSONL", "ndjson", f"{suffix}.gz", "txt", "zst"]
        )
    path = folder / f"{kind}.{suffix}"
    path.write_bytes(content)
    expected = [_expected(row, kind) for row in rows] if sound else None
    return Case(path, kind, f"{suffix} {made or 'sound'}", expected, options)


def _expected(row: dict[str, Any], kind: str) -> tuple[str, str, str]:
    if kind == "queries":
        return str(row["id"]), row["prompt"], row["completion"]
    return str(row["id"]), str(row["source"]), row["text"]


def _rows(draw: random.Random, kind: str) -> Rows:
    names = draw.sample(NAMES, draw.randint(1, 5))
    rows: Rows = []
    for name in names:
        text = f"{draw.choice(TEXTS)}{draw.choice(['', ' ', *NAMES])[:40]}"
        if kind == "queries":
            rows.append({"id": name, "prompt": text[:30], "completion": draw.choice(TEXTS)[:30]})
        else:
            label = {"label": draw.choice(["0", "1", "LABEL_2"])} if kind == "classes" else {}
            rows.append(
                {"id": name, "source": draw.choice(NAMES), "text": text, "year": str(draw.randint(1, 9)), **label}
            )
    return rows


def _junk(draw: random.Random, rows: Rows) -> str:
    """Spoil a value or a name, in place."""
    row = draw.choice(rows)
    key = draw.choice(list(row))
    what = draw.choice(["value", "value", "gone", "renamed", "further", "twice", "alike"])
    if what == "value":
        row[key] = draw.choice(JUNK)
    elif what == "alike":
        row[key] = draw.choice(ALIKE)
    elif what == "gone":
        del row[key]
    elif what == "renamed":
        row[draw.choice(KEYS)] = row.pop(key)
    elif what == "further":
        row[draw.choice(KEYS)] = draw.choice(JUNK)
    else:
        rows.append(dict(row))
    return f"{what} {key}"


def _jsonl(draw: random.Random, rows: Rows, sound: bool) -> tuple[bytes, str]:
    made = "" if sound or draw.random() < 0.4 else _junk(draw, rows)
    ascii_only = not sound or draw.random() < 0.5
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    if sound:
        end = draw.choice(["\n", "\r\n", "\n\n"])
        start = draw.choice(["", "\ufeff"])
        return (start + end.join(lines) + draw.choice(["", end])).encode(), ""
    if draw.random() < 0.3:
        deep = draw.choice([50, 900, 100_000])
        line = draw.choice(
            [
                "[" * deep, '{"a":' * deep, "[]", "null", "1", '"x"', "1e999", "NaN", "{}", "\x00", "'id': 1",
                "{'id': 1}",
                '{"id": "x", "id": "y", "source": "s", "text": "one two"}', "9" * 5000, '{"id": "\\ud800"}', "\u2028",
                '{"id": "deep", "source": "s", "text": "one two three", "more": ' + "[" * 900 + "]" * 900 + "}",
                '{"id":"x","source":"s","text":"one two"}{"id":"y","source":"s","text":"one two"}',
            ]
        )  # fmt: skip
        lines.insert(draw.randrange(len(lines) + 1), line)
        made += " a line of another kind"
    return "\n".join(lines).encode(), made


def _csv(draw: random.Random, rows: Rows, sound: bool) -> tuple[bytes, str]:
    made = "" if sound or draw.random() < 0.4 else _junk(draw, rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [["" if row.get(name) is None else str(row[name]) for name in names] for row in rows]
    if not sound and draw.random() < 0.4:
        made += " ragged"
        line = draw.choice(cells)
        draw.choice([line.pop, lambda: line.append("x"), names.pop, lambda: names.append(names[0]), names.clear])()
    buffer = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if sound else draw.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
    writer = csv.writer(buffer, quoting=quoting, lineterminator=draw.choice(["\n", "\r\n"] + ["\r"] * (not sound)))
    writer.writerows([names, *cells])
    start = draw.choice(["", "\ufeff"]) if sound else ""
    return (start + buffer.getvalue()).encode(errors="surrogatepass"), made


ARRAYS: list[Callable[[int], Any]] = [
    lambda n: pa.array([["x"]] * n),
    lambda n: pa.array([{"a": "x"}] * n),
    lambda n: pa.array([b"\xff\x00"] * n),
    lambda n: pa.array([2**62] * n, pa.timestamp("ns")),
    lambda n: pa.array([2**62] * n, pa.timestamp("us")),
    lambda n: pa.array([-(2**62)] * n, pa.duration("us")),
    lambda n: pa.array([1] * n, pa.decimal128(38, 10)),
    lambda n: pa.nulls(n),
    lambda n: pa.array([float("nan")] * n),
    lambda n: pa.array([2**63 + 5] * n, pa.uint64()),
    lambda n: pa.array(range(n)),
    lambda n: pa.array(["x"] * n).dictionary_encode(),
    lambda n: pa.array(["one two"] * n, pa.large_string()),
    lambda n: pa.array(["one two", *[None] * (n - 1)]),
    lambda n: pa.array([b"ab\xffcd"] * n).view(pa.string()),
]


def _parquet(draw: random.Random, rows: Rows, sound: bool) -> tuple[bytes, str]:
    names = list(rows[0])
    columns = [pa.array([str(row[name]) for row in rows]) for name in names]
    made = ""
    if not sound and draw.random() < 0.7:
        number = draw.randrange(len(names))
        what = draw.choice(["kind", "kind", "kind", "twice", "gone", "further"])
        made = f"{what} {names[number]}"
        if what == "kind":
            columns[number] = draw.choice(ARRAYS)(len(rows))
        elif what == "twice":
            names.append(names[number])
            columns.append(columns[0])
        elif what == "gone":
            del names[number], columns[number]
        else:
            names.append(draw.choice([*KEYS[:8], "id.x"]))
            columns.append(draw.choice(ARRAYS)(len(rows)))
    buffer = io.BytesIO()
    table = pa.Table.from_arrays(columns, names=names)
    compression = draw.choice(["none", "snappy", "zstd", "gzip"])
    pq.write_table(table, buffer, compression=compression, write_page_checksum=draw.random() < 0.5)
    return buffer.getvalue(), made


def _folder(draw: random.Random, folder: Path, options: dict[str, Any]) -> Case:
    root = folder / "corpus of text"
    (root / "a source").mkdir(parents=True)
    expected = []
    for number in range(draw.randint(1, 4)):
        name = f"{draw.choice(['a source/', ''])}{number}{draw.choice(NAMES)[:40]}"
        for unwelcome, instead in (("\x00", ""), ("//", ""), (".exe", ".rst")):
            name = name.replace(unwelcome, instead)
        name = name if name.count("/") < 2 and ".." not in name and "</" not in name else f"{number}.txt"
        text = draw.choice(TEXTS)
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode())
        expected.append((name, name.split("/")[0] if "/" in name else root.name, text))
    what = draw.choice(["", "", "bad", "empty", "link", "linked folder", "utf16", "surrogate"])
    bad = root / "a source" / "spoiled.txt"
    if what == "bad":
        bad.write_bytes(b"fine\nnot \xff")
    elif what == "empty":
        bad.write_bytes(b" \r\n")
    elif what in ("link", "linked folder"):
        bad.symlink_to("/etc/hostname" if what == "link" else "/etc")
    elif what == "utf16":
        bad.write_bytes("one two".encode("utf-16"))
    elif what == "surrogate":
        (root / "\udcff.txt").write_bytes(b"one two three")
    return Case(root, "corpus", f"folder {what or 'sound'}", None if what else sorted(expected), options)


def truncate(draw: random.Random, content: bytes) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def flip(draw: random.Random, content: bytes) -> bytes:
    spoiled = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        if spoiled:
            spoiled[draw.randrange(len(spoiled))] ^= 1 << draw.randrange(8)
    return bytes(spoiled)


def flip_the_end(draw: random.Random, content: bytes) -> bytes:
    spoiled = bytearray(content)
    if spoiled:
        spoiled[-1 - draw.randrange(min(400, len(spoiled)))] ^= 1 << draw.randrange(8)
    return bytes(spoiled)


def cut_out(draw: random.Random, content: bytes) -> bytes:
    start = draw.randrange(len(content) + 1)
    return content[:start] + content[start + draw.randint(1, 30) :]


def repeat(draw: random.Random, content: bytes) -> bytes:
    start = draw.randrange(len(content) + 1)
    return content[:start] + content[start : start + draw.randint(1, 200)] * draw.choice([2, 2, 50]) + content[start:]


def insert(draw: random.Random, content: bytes) -> bytes:
    start = draw.randrange(len(content) + 1)
    what = draw.choice(
        [b"\xff", b"\x00", b"\xed\xa0\x80", b"\xc0\xaf", b"\xef\xbb\xbf", b'"', b"\n", b"\r", b"\x85", b"{"]
    )
    return content[:start] + what + content[start:]


def noise(draw: random.Random, content: bytes) -> bytes:
    return draw.randbytes(draw.choice([1, 10, 1000]))


def empty(draw: random.Random, content: bytes) -> bytes:
    return draw.choice([b"", b"\n", b"\xef\xbb\xbf", b"\x00" * 100, b" \r\n \r\n"])


def other_encoding(draw: random.Random, content: bytes) -> bytes:
    text = content.decode("utf-8", errors="replace")
    return text.encode(draw.choice(["utf-16", "utf-16-le", "utf-32", "cp1252", "utf-7"]), errors="replace")


def compressed(draw: random.Random, content: bytes) -> bytes:
    return draw.choice([gzip.compress(content, mtime=0), b"\x28\xb5\x2f\xfd" + content])


def magic(draw: random.Random, content: bytes) -> bytes:
    return b"PAR1" + content + draw.choice([b"", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x00"]) + b"PAR1"


BYTES = [
    truncate,
    flip,
    flip,
    flip_the_end,
    cut_out,
    repeat,
    insert,
    insert,
    noise,
    empty,
    other_encoding,
    compressed,
    magic,
]
