"""Checks of your own checkpoint and corpus for `dataworth doctor`: what would go wrong, what to know before a run."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from dataworth.command.doctor import Check
from dataworth.storage.corpus import TokenisedDocument
from dataworth.storage.errors import InputError
from dataworth.tasks.corpus.config import CorpusConfig
from dataworth.tasks.corpus.readers import read_documents
from dataworth.tasks.corpus.steps import taught_by
from dataworth.tasks.corpus.windows import REPEATED, tokenised_document
from dataworth.tasks.gradients.autograd import comparable_layers, error_against_autograd
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.layers import coverage
from dataworth.tasks.model.loading import LoadedModel, load
from dataworth.tasks.model.probes import ROUNDING, ROUNDING_OF_HALF
from dataworth.tasks.model.tokens import encoded, panics_told

__all__ = ["checkup"]

# Documents that are read of a corpus, tokens of the texts whose gradients are compared, and how many layers are.
N_DOCUMENTS = 1000
# Tokens of a window that no document is longer than.
LONG = 2**30
N_TEXTS, N_TOKENS, N_LAYERS = 3, 48, 4
SAMPLES = (
    "The keeper of the light sleeps by day. Nobody rings the bell before noon.",
    "Numbers such as 12 and 345 are added first, then sorted and printed.",
    "A lamp burns at the window all night long.",
)


def checkup(model: ModelConfig, corpus: CorpusConfig | None) -> Iterator[Check]:
    """Check a checkpoint, and with it the first documents of a corpus; stop at the first problem that rules out a run.

    Args:
        model: the checkpoint.
        corpus: the documents; None: a few sentences stand for them.
    """
    try:
        loaded = load(model)
    except InputError as error:
        yield Check("model", model.name, False, str(error))
        return
    n_parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    kind = type(loaded.model).__name__
    yield Check("model", f"{kind}, {n_parameters / 1e6:,.1f} million parameters, {loaded.model.dtype}, {loaded.device}")
    if loaded.labels is None:
        yield Check("predictions", "those of a token change with no later one")
    else:
        yield Check("classes", f"{len(loaded.labels)}: {', '.join(loaded.labels[:8])}")
    yield Check("batches", loaded.reading.sentence or "a text in a padded batch is computed as it is alone")
    yield Check(
        "positions", "no limit is stated" if loaded.max_positions is None else f"{loaded.max_positions:,} tokens"
    )
    left = f"; {len(loaded.left_out)} layers have no part in a text's loss" if loaded.left_out else ""
    yield Check("coverage", coverage(loaded.model, loaded.layers).sentence() + left)
    texts = list(SAMPLES)
    if corpus is not None:
        try:
            read = islice(read_documents(corpus, labelled=loaded.labels is not None), N_DOCUMENTS)
            documents = [tokenised_document(loaded.tokenizer, document, LONG, taught_by(corpus)) for document in read]
        except InputError as error:
            yield Check("corpus", ", ".join(corpus.files), False, str(error))
            return
        looked_at = list(_of_corpus(loaded, documents, corpus))
        yield from looked_at
        if not all(check.ok for check in looked_at if check.what == "ids"):
            return
        texts = [document.text for document in documents[:N_TEXTS]]
    yield _tokens(loaded)
    yield _joints(loaded, texts)
    yield _gradients(loaded, texts)


def _of_corpus(loaded: LoadedModel, documents: Sequence[TokenisedDocument], corpus: CorpusConfig) -> Iterator[Check]:
    """Sizes, sources, unknown characters, and ids that the model does not embed."""
    read = [document.tokens.tolist() for document in documents]
    n_tokens = sum(map(len, read))
    sources = Counter(document.source for document in documents)
    which = "all" if len(documents) < N_DOCUMENTS else f"the first {len(documents):,}"
    n_short = sum(len(ids) < 2 for ids in read)
    size = f"{which} documents: {len(documents):,} of {len(sources)} sources, {n_tokens:,} tokens"
    if n_short:
        size += f"; {n_short} have fewer than the two tokens an example needs"
    yield Check("corpus", size, n_short < len(read), "no document has the two tokens an example needs")
    unknown = loaded.tokenizer.unk_token_id
    n_unknown = 0 if unknown is None else sum(ids.count(unknown) for ids in read)
    if n_unknown:
        yield Check("unknown", f"{n_unknown / max(1, n_tokens):.1%} of the tokens are unknown to the tokenizer")
    n_repeated = sum(REPEATED in document.remarks for document in documents)
    if n_repeated:
        yield Check("rendered", f"{n_repeated} begin or end as the tokenizer would; it is not added a second time")
    beyond = max((max(ids, default=0) for ids in read), default=0)
    if loaded.n_embedded is not None and beyond >= loaded.n_embedded:
        remedy = f"a document needs token {beyond}, the model embeds ids up to {loaded.n_embedded - 1}"
        yield Check("ids", f"up to {beyond}", False, remedy)
    try:
        yield Check("windows", f"of {corpus.window(loaded.max_positions)} tokens")
    except InputError:
        yield Check(
            "windows", f"{corpus.max_length} tokens", False, f"pass --corpus.max_length {loaded.max_positions} or less"
        )


def _tokens(loaded: LoadedModel) -> Check:
    """What the tokenizer adds to every text."""
    text = encoded(loaded.tokenizer, "a")
    before, after = (
        " ".join(loaded.tokenizer.convert_ids_to_tokens(ids)) or "nothing"
        for ids in (text.ids[: text.n_before], text.ids[text.end :])
    )
    speed = "" if loaded.tokenizer.is_fast else "; it is not a fast one, so that passages are shown as whole texts"
    chat = "; its chat template writes conversations, prompts are taken as they are"
    chat = chat if getattr(loaded.tokenizer, "chat_template", None) else ""
    return Check("tokenizer", f"adds {before} before a text, {after} after it{speed}{chat}")


def _joints(loaded: LoadedModel, texts: Sequence[str]) -> Check:
    """How often a prompt and its completion, tokenised apart, would be other tokens than the text they make."""
    tried = differing = 0
    for text in texts:
        places = [place for place, letter in enumerate(text[:400]) if letter == " " and place > 0]
        for place in places[:: max(1, len(places) // 8)]:
            whole = encoded(loaded.tokenizer, text[:400])
            apart = encoded(loaded.tokenizer, text[:place])
            with panics_told():
                rest = loaded.tokenizer(text[place:400], add_special_tokens=False, verbose=False)["input_ids"]
            tried += 1
            differing += apart.ids[: apart.end] + list(rest) != whole.ids[: whole.end]
    return Check(
        "joints",
        f"prompt and completion are tokenised as one text; apart, {differing} of {tried} would be other tokens",
    )


def _gradients(loaded: LoadedModel, texts: Sequence[str]) -> Check:
    """A few gradients against autograd on the weights, one text at a time."""
    layers = comparable_layers(loaded.layers, N_LAYERS)
    if not layers:
        return Check("gradients", "not compared: the weights are quantised, or too large to differentiate whole")
    room = N_TOKENS if loaded.max_positions is None else min(N_TOKENS, loaded.max_positions)
    rows = [_cut(loaded, text, room - 7 * number) for number, text in enumerate(texts)]
    rows = [row for row in rows if len(row) >= 2]
    if not rows:
        return Check("gradients", "not compared: no text has two tokens")
    error = error_against_autograd(loaded, layers, rows, [0] * len(rows))
    allowed = ROUNDING.get(loaded.model.dtype, ROUNDING_OF_HALF)
    sentence = f"differ from autograd's by at most {error:.0e} of the largest ({len(layers)} layers, {len(rows)} texts)"
    return Check("gradients", sentence, error <= allowed, "" if error <= allowed else "this model is computed wrongly")


def _cut(loaded: LoadedModel, text: str, room: int) -> np.ndarray:
    """Token ids of the beginning of a text, with all that the tokenizer adds."""
    ids: Any = encoded(loaded.tokenizer, text, max(2, room)).ids
    return np.asarray(ids, np.int64)
