"""A program: tries a tokenizer that nobody has to trust where it harms nobody, and says what is unusual about it.

What it does that a program cannot catch (Rust's allocation failures end the process) or wait for ends this process.
"""

import base64
import json
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["ORDINARY", "PROBES", "growth", "unusual"]

# Exit code of an error like any other, which who loads the tokenizer meets, too, and says.
ORDINARY = 3

# What every tokenizer is given: texts that the model is examined with, every printable letter, and long runs.
PROBES = (
    "a",
    "".join(map(chr, range(32, 127))),
    "The river runs down from the hills, and 12 or 345 of them\nnever ask;\tthe way to the sea.",
    *(letter * 2000 for letter in "ax1 \n-."),
    "a" * 200 + "!",
    "Größe ﬁ ﷺ 東京 한국 😀 é",
)

# How much longer than the text a normalizer in use makes it (" " becomes "▁", of three bytes).
MAX_GROWTH = 16
# Beyond this there is no text that it may be tried on.
ABSURD_GROWTH = 10**6
# Longest replacement in a table of normalisation; that of NFKC with all its signs has 33 bytes.
MAX_REPLACEMENT = 64
# BERT's limit is 100.
MAX_WORD_CHARACTERS = 1000
# The longest tokens in use are runs of some hundred spaces.
MAX_TOKEN_CHARACTERS = 2000

CASES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LETTERS = r"[^\r\n\p{L}\p{N}]?"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
# Patterns of the field's tokenizers, none of which takes more than a few steps a character: GPT-2, GPT-4 and Llama 3,
# Qwen, GPT-4o and Tekken, DeepSeek, Falcon, BLOOM, and what sentencepiece's are translated to.
KNOWN = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    rf"{CASES}|{LETTERS}\p{{L}}+|\p{{N}}{{1,3}}|{SIGNS}|{SPACES}",
    rf"{CASES}|{LETTERS}\p{{L}}+|\p{{N}}|{SIGNS}|{SPACES}",
    rf"{CASES}|{LETTERS}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}",
    *(
        rf"{LETTERS}{UPPER}*{LOWER}+{cases}|{LETTERS}{UPPER}+{LOWER}*{cases}|\p{{N}}{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
        for cases in ("", f"{CASES}?")
        for digits in ("", "{1,3}")
    ),
    r"\p{N}{1,3}", r"\p{N}", "[0-9][0-9][0-9]", "[\r\n]", r"[\r\n]", r"\s+$", r"\s+", r" {2,}", r"\n", r"[\n\r\t]",
    r"^▁+$", r" +▁", r"\s{2,}|[\n\r\t]", "[一-龥ࠀ-一가-퟿]+", "[一-龥぀-ゟ゠-ヿ]+", r" ?[^(\s|[.,!?…。，、।۔،])]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"""
    rf"{SPACES}",
}  # fmt: skip


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """Every object in a part of a tokenizer's file."""
    if isinstance(part, dict):
        yield part
    for each in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _parts(each)


def growth(part: Any) -> float:
    """How many times as long as a text its replacements, one after another, may make it."""
    product = 1.0
    for each in _parts(part):
        if each.get("type") == "Replace":
            pattern, content = each.get("pattern"), str(each.get("content"))
            text = pattern.get("String") if isinstance(pattern, dict) else None
            product *= max(1.0, len(content) / len(text)) if text else 1.0 + len(content)
    return product


def unusual(content: dict[str, Any]) -> str | None:
    """What none of the field's tokenizers has, and may be harmless on one text and explode on another; else None."""
    if growth(content.get("normalizer")) > MAX_GROWTH:
        return "replacements that make a text longer"
    parts = [each for key in ("normalizer", "pre_tokenizer") for each in _parts(content.get(key))]
    if any(each["Regex"] not in KNOWN for each in parts if "Regex" in each):
        return "a pattern of its own"
    tables = [base64.b64decode(each["precompiled_charsmap"]) for each in parts if each.get("precompiled_charsmap")]
    # A table is a tree, after its size, and the replacements, each with a zero at its end.
    replacements = [text for table in tables for text in table[4 + int.from_bytes(table[:4], "little") :].split(b"\0")]
    if len(tables) > 1 or max(map(len, replacements), default=0) > MAX_REPLACEMENT:
        return "a table of long replacements"
    model = content.get("model") or {}
    if int(model.get("max_input_chars_per_word") or 0) > MAX_WORD_CHARACTERS:
        return "words of any length"
    words = model.get("vocab") or ()
    tokens = (word if isinstance(word, str) else word[0] for word in words)
    if max(map(len, tokens), default=0) > MAX_TOKEN_CHARACTERS:
        return "tokens of any length"
    return None


def _refuse_absurd(content: dict[str, Any]) -> None:
    """Refuse what needs no trial."""
    of_text, of_tokens = growth(content.get("normalizer")), growth(content.get("decoder"))
    if of_text > ABSURD_GROWTH or of_tokens > MAX_GROWTH:
        raise MemoryError(f"it makes texts {of_text:.0e} times as long, and tokens {of_tokens:.0e} times")


def _from_file(path: str) -> str | None:
    """Of a tokenizer.json: all its parts on all probes."""
    from tokenizers import Tokenizer

    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    _refuse_absurd(content)
    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for probe in PROBES:
        tokenizer.decode(tokenizer.encode(probe).ids, skip_special_tokens=False)
    return unusual(content)


def _whole(name: str) -> str | None:
    """Of a checkpoint, as transformers makes it of all its files."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    content = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    _refuse_absurd(content)
    for probe in PROBES:
        tokenizer.decode(tokenizer(probe, verbose=False)["input_ids"])
    return unusual(content)


def _texts(path: str) -> None:
    """Encode every text that comes, one a line; a line of answer says that it was harmless."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for line in sys.stdin:
        tokenizer.encode(json.loads(line))
        print("ok", flush=True)  # noqa: T201  the answer


def main(kind: str, name: str) -> None:
    """Try it; what is unusual is printed."""
    try:
        if kind == "texts":
            _texts(name)
        else:
            print(json.dumps({"unusual": _from_file(name) if kind == "file" else _whole(name)}))  # noqa: T201
    except (Exception, SystemExit) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(1 if isinstance(error, MemoryError) else ORDINARY)
    except BaseException as error:  # a panic of Rust's, which is no Exception
        print(f"it panics: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
