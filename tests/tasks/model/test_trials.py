"""Tokenizers that explode: in a process of their own, as one sentence; those of the field are read as before."""

import json
import os
import shutil
import time

import pytest
import transformers as hf
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from dataworth.storage.errors import InputError
from dataworth.tasks.corpus.documents import Document
from dataworth.tasks.corpus.windows import tokenised_document
from dataworth.tasks.model import trials
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import load, vocabulary
from dataworth.tasks.model.tokenizer_trial import KNOWN, PROBES, growth, unusual
from dataworth.tasks.model.tokens import encoded
from tests.conformance.tokenizers import MAKES

SECONDS = 60


@pytest.fixture
def checkpoint(checkpoints, tmp_path):
    return shutil.copytree(checkpoints["llama"], tmp_path / "checkpoint")


def edit(checkpoint, **parts):
    path = checkpoint / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))


def doubled(letters, times):
    replace = {"type": "Replace", "pattern": {"String": letters}, "content": letters * 2}
    return {"type": "Sequence", "normalizers": [replace] * times}


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def refusal(checkpoint):
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        load(ModelConfig(name=str(checkpoint)))
    assert time.monotonic() - began < SECONDS
    assert str(caught.value).isprintable()
    return str(caught.value).removeprefix(f"--model {checkpoint}: ")


DOUBLED = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
HOSTILE = {
    "a text that doubles forty times": ({"normalizer": doubled("a", 40)}, "needs more memory than any should"),
    "a pattern that never ends": ({"pre_tokenizer": split("(a+)+$")}, "it panics: Onig: Regex search error"),
    "tokens that double when they are read": (
        {"decoder": {"type": "Sequence", "decoders": [DOUBLED] * 40}},
        "needs more memory than any should",
    ),
    "a text of a million million tokens": (
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "s", "type_id": 0}}] * 100_000,
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"s": {"id": "s", "ids": [0] * 100_000, "tokens": ["s"] * 100_000}},
            }
        },
        "needs more memory than any should",
    ),
}


@pytest.mark.parametrize(("parts", "said"), HOSTILE.values(), ids=HOSTILE)
def test_what_explodes_on_any_text_is_refused_before_it_is_loaded(checkpoint, parts, said):
    edit(checkpoint, **parts)
    assert f"cannot be loaded (its tokenizer: {said}" in refusal(checkpoint)
    with pytest.raises(InputError, match="its tokenizer: "):
        vocabulary(ModelConfig(name=str(checkpoint)))


def test_what_takes_too_long_is_refused(checkpoint, monkeypatch):
    monkeypatch.setattr(trials, "SECONDS", 0.01)
    assert "its tokenizer: not done after 0 s" in refusal(checkpoint)


def test_a_length_that_texts_are_filled_up_to_is_not_believed(checkpoint):
    padding = {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
               "pad_type_id": 0, "pad_token": "<s>"}  # fmt: skip
    edit(checkpoint, padding=padding, truncation=None)
    assert len(encoded(load(ModelConfig(name=str(checkpoint))).tokenizer, "one two").ids) < 20


def test_what_explodes_on_one_text_is_refused_at_that_text(checkpoint, monkeypatch):
    monkeypatch.setattr(trials, "MAX_TEXT_MEMORY", 2**30)
    edit(checkpoint, normalizer=doubled("zqx", 16))
    tokenizer = load(ModelConfig(name=str(checkpoint))).tokenizer
    plain = json.loads((checkpoint / "tokenizer.json").read_text()) | {"normalizer": None}
    before = hf.PreTrainedTokenizerFast(tokenizer_object=type(tokenizer.backend_tokenizer).from_str(json.dumps(plain)))
    for text in ("one two", "größer\nals 3", ""):
        assert encoded(tokenizer, text).ids == encoded(before, text).ids
    document = Document("d", "s", "one zqx two " * 1000, "c.jsonl, line 7")
    with pytest.raises(InputError) as caught:
        tokenised_document(tokenizer, document, 32)
    assert str(caught.value) == (
        "c.jsonl, line 7: the tokenizer has replacements that make a text longer, and on this text of 12,000 "
        "characters: needs more memory than any should"
    )


def test_a_pattern_that_panics_on_one_text_is_refused_at_that_text(checkpoint):
    edit(checkpoint, pre_tokenizer=split("(z|zz)+$"))
    tokenizer = load(ModelConfig(name=str(checkpoint))).tokenizer
    assert encoded(tokenizer, "one two").ids
    with pytest.raises(InputError, match="has a pattern of its own, and on this text .* it panics: Onig"):
        encoded(tokenizer, "z" * 60 + "!")
    del tokenizer.forerunner
    with pytest.raises(InputError, match="^the tokenizer panics .Onig: Regex search error"):
        encoded(tokenizer, "z" * 60 + "!")


def test_a_text_that_takes_too_long_is_refused(checkpoint, monkeypatch):
    edit(checkpoint, pre_tokenizer=split("z*z*z*y"))
    tokenizer = load(ModelConfig(name=str(checkpoint))).tokenizer
    assert encoded(tokenizer, "one two").ids
    monkeypatch.setattr(trials, "SECONDS_OF_TEXT", 0.5)
    with pytest.raises(InputError, match="has a pattern of its own, .* not done after"):
        encoded(tokenizer, ("z" * 300 + "\n") * 1000 + "y")


def test_the_process_ends_with_its_tokenizer(checkpoint):
    ahead = trials.Forerunner((checkpoint / "tokenizer.json").read_text(), "nothing")
    ahead.check("one two")
    process = ahead._process
    assert process.poll() is None
    del ahead
    assert process.poll() is not None


def test_the_same_files_are_tried_once(checkpoint, monkeypatch):
    edit(checkpoint, version="1.0", normalizer={"type": "Lowercase"})
    assert trials.tried(str(checkpoint)) == trials.Trial(None)
    monkeypatch.setattr(trials, "run_limited", lambda *_: pytest.fail("tried again"))
    assert trials.tried(str(checkpoint)) == trials.Trial(None)
    shutil.copytree(checkpoint, checkpoint.with_name("copy"))
    assert trials.tried(str(checkpoint.with_name("copy"))) == trials.Trial(None)
    edit(checkpoint, normalizer=None)
    with pytest.raises(pytest.fail.Exception, match="tried again"):
        trials.tried(str(checkpoint))


def test_where_nothing_can_be_kept_it_is_tried_again(checkpoint, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DATAWORTH_HOME", str(tmp_path / "file"))
    assert trials.tried(str(checkpoint)) == trials.Trial(None)


def test_a_tokenizer_without_its_json_is_tried_as_a_whole(checkpoint, monkeypatch):
    kinds = []
    real = trials._outcome
    monkeypatch.setattr(trials, "_outcome", lambda kind, given: kinds.append(kind) or real(kind, given))
    content = json.loads((checkpoint / "tokenizer.json").read_text())
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    (checkpoint / "merges.txt").write_text("\n".join(" ".join(pair) for pair in content["model"]["merges"]))
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    assert trials.tried(str(checkpoint)) == trials.Trial(None)
    assert kinds == ["whole"]


def test_tokenizers_of_the_field_have_nothing_unusual(checkpoint):
    vocabulary = {token: number for number, token in enumerate([*map(chr, range(33, 127)), "<unk>", "<s>", "</s>"])}
    pieces = [(token, -1.0) for token in vocabulary]
    made = [
        hf.GPT2Tokenizer(vocab=vocabulary, merges=[]),
        hf.Qwen2Tokenizer(vocab=vocabulary, merges=[]),
        hf.LlamaTokenizer(vocab=vocabulary, merges=[]),
        hf.GemmaTokenizer(vocab=vocabulary, merges=[]),
        hf.BertTokenizer(vocab={**vocabulary, "[UNK]": 200, "[CLS]": 201, "[SEP]": 202, "[PAD]": 203, "[MASK]": 204}),
        hf.T5Tokenizer(vocab=[("<pad>", 0.0), *pieces]),
        hf.AlbertTokenizer(vocab=[(token, 0.0) for token in ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")]),
    ]
    for tokenizer in made:
        assert unusual(json.loads(tokenizer.backend_tokenizer.to_str())) is None, type(tokenizer).__name__
    assert unusual(json.loads((checkpoint / "tokenizer.json").read_text())) is None


@pytest.mark.parametrize("make", MAKES)
def test_tokenizers_of_every_make_pass_their_trial(tmp_path, make):
    MAKES[make]().save_pretrained(tmp_path)
    assert trials.tried(str(tmp_path)) == trials.Trial(None)


@pytest.mark.parametrize("pattern", sorted(KNOWN))
def test_known_patterns_take_few_steps_a_character(pattern):
    """Of long runs of each kind of letter."""
    tokenizer = Tokenizer(models.WordLevel({"u": 0}, unk_token="u"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    for text in (
        *PROBES,
        *(letters * 20_000 for letters in ("a", " ", "\n", " \n", "-", "7", "A", "aA", "中", "'s", "▁")),
    ):
        began = time.process_time()
        tokenizer.encode(text)
        assert time.process_time() - began < 5, text[:10]


def test_what_is_unusual():
    many = {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}
    words = {"type": "WordPiece", "max_input_chars_per_word": 10**9, "vocab": {}}
    assert "longer" in unusual({"normalizer": doubled("ab", 5)})
    assert unusual({"normalizer": doubled("ab", 4)}) is None
    assert unusual({"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}}) is None
    assert "longer" in unusual({"normalizer": {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": "x" * 16}})
    assert "pattern" in unusual({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split("(a|a)*b")]}})
    assert "table" in unusual({"normalizer": {"type": "Sequence", "normalizers": [many, many]}})
    assert "words" in unusual({"model": words})
    assert "tokens" in unusual({"model": {"type": "Unigram", "vocab": [["x" * 3000, -1.0]]}})
    assert growth(None) == 1


def test_settings_as_large_as_weights_are_refused(checkpoint):
    with (checkpoint / "config.json").open("ab") as file:
        os.truncate(file.fileno(), 2**40)
    assert refusal(checkpoint).startswith("cannot be loaded (its config.json has more than 33,554,432 bytes")
