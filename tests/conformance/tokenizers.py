"""Small tokenizers of every make in the field: what they add to a text, and what they do to its characters."""

from collections.abc import Callable
from typing import Any

import tokenizers as tk
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

__all__ = ["MAKES", "TEXTS"]

TEXTS = [
    "The keeper sleeps. Nobody after the bell, nobody before it.",
    "Numbers 12 and 345 are added first,  then sorted\nand printed.",
    "naïve café, coöperate; ﬁnal “quotes” — and a dash",
    "A lamp 🕯️ at night, 日本語のテキスト and more.",
]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def _trained(tokenizer: tk.Tokenizer, trainer: Any) -> tk.Tokenizer:
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def _fast(tokenizer: tk.Tokenizer, **names: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)


def _template(single: str) -> Any:
    return processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])


NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
BYTES = [f"<0x{number:02X}>" for number in range(256)]


def _sentencepiece(single: str, *, prefix: bool, merges: int = 80) -> PreTrainedTokenizerFast:
    """BPE with a piece for a space and byte fallback, as Llama's and Gemma's first tokenizers have it."""
    tokenizer = tk.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    steps = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    ascii_letters = [chr(number) for number in range(33, 127)] + ["▁", "\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=len(SPECIAL) + 256 + len(ascii_letters) + merges,
        special_tokens=[*SPECIAL, *BYTES],
        initial_alphabet=ascii_letters,
        limit_alphabet=len(ascii_letters),
        show_progress=False,
    )
    # Merges are learned within words; the tokenizer itself sees the whole text as one piece.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    _trained(tokenizer, trainer)
    tokenizer.pre_tokenizer = None
    tokenizer.post_processor = _template(single)
    return _fast(tokenizer, **NAMES)


def _byte_level(single: str | None, *, add_prefix_space: bool = False, trim: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2, RoBERTa and Llama 3 have it."""
    tokenizer = tk.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, trim_offsets=trim)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _trained(tokenizer, trainers.BpeTrainer(vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet))
    of_bytes = processors.ByteLevel(trim_offsets=trim)
    tokenizer.post_processor = of_bytes if single is None else processors.Sequence([of_bytes, _template(single)])
    return _fast(tokenizer, **NAMES)


def _word_piece() -> PreTrainedTokenizerFast:
    """Lower-cased word pieces between two special tokens, as BERT has them."""
    tokenizer = tk.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    _trained(tokenizer, trainers.WordPieceTrainer(vocab_size=200, special_tokens=names))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return _fast(tokenizer, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]", pad_token="[PAD]")


def _unigram(single: str, scheme: str) -> PreTrainedTokenizerFast:
    """A unigram model with a piece for a space, after a compatibility normaliser, as T5 and XLM-R have it."""
    tokenizer = tk.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(tk.Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    _trained(tokenizer, trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>"))
    tokenizer.post_processor = _template(single)
    return _fast(tokenizer, **NAMES)


def _with_chat_tokens() -> PreTrainedTokenizerFast:
    tokenizer = _byte_level(None)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), "lamp"])
    return tokenizer


# name → how it is made
MAKES: dict[str, Callable[[], Any]] = {
    "Llama: a piece for the space before every text": lambda: _sentencepiece("<s> $A", prefix=True),
    "Llama, with an end token": lambda: _sentencepiece("<s> $A </s>", prefix=True),
    "Gemma: no piece before a text": lambda: _sentencepiece("<s> $A", prefix=False),
    "byte fallback for most characters": lambda: _sentencepiece("<s> $A", prefix=False, merges=0),
    "GPT-2: nothing added": lambda: _byte_level(None),
    "GPT-2, offsets with their spaces": lambda: _byte_level(None, trim=False),
    "Llama 3: bytes, a beginning": lambda: _byte_level("<s> $A"),
    "RoBERTa: bytes, a space before every text, both ends": lambda: _byte_level("<s> $A </s>", add_prefix_space=True),
    "BERT: word pieces, lower case, both ends": _word_piece,
    "T5: unigrams, an end": lambda: _unigram("$A </s>", "always"),
    "XLM-R: unigrams, both ends": lambda: _unigram("<s> $A </s>", "always"),
    "unigrams, a piece before the first word": lambda: _unigram("<s> $A", "first"),
    "added tokens for chats": _with_chat_tokens,
    "ByT5: bytes in Python, an end": lambda: ByT5Tokenizer(extra_ids=0),
}
