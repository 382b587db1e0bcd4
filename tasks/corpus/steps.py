"""Steps that turn documents and queries into a corpus store."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

import torch

from dataworth.storage.corpus import CorpusStore, TokenisedDocument
from dataworth.storage.errors import InputError
from dataworth.storage.locations import StoreFolders
from dataworth.storage.ref import StoreRef
from dataworth.storage.withdrawals import Withdrawals
from dataworth.tasks.corpus.config import CorpusConfig, QueriesConfig
from dataworth.tasks.corpus.documents import Document, Query
from dataworth.tasks.corpus.readers import read_documents, read_queries
from dataworth.tasks.corpus.windows import (
    answered_query,
    class_number,
    classified_text,
    prompt_tokens,
    tokenised_document,
    tokenised_query,
)
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.generation import end_tokens, greedy_tokens
from dataworth.tasks.model.loading import LoadedModel, load
from dataworth.tasks.progress import run_logger

__all__ = ["prepare_corpus", "prepare_queries"]


def prepare_corpus(store: str, model: ModelConfig, corpus: CorpusConfig) -> StoreRef:
    """Read, check and tokenise the documents.

    Raises:
        InputError: a document, a file or the window length cannot be used; nothing is left behind.
    """
    loaded = load(model)
    length = corpus.window(loaded.max_positions)

    def tokenised(document: Document) -> TokenisedDocument:
        if loaded.labels is None:
            return tokenised_document(loaded.tokenizer, document, length)
        label = class_number(document.label or "", loaded.labels, f"{document.where}, field {corpus.label!r}")
        text = classified_text(loaded.tokenizer, document.id, document.source, document.text, label, length)
        return replace(text, fields=document.fields)

    withdrawn, left_out = Withdrawals(store), []

    def kept(document: Document) -> bool:
        if withdrawn.covers(document.id, document.source):
            left_out.append(document.id)
            return False
        return True

    checked = _Checked(loaded, "documents")
    documents = checked.all(map(tokenised, filter(kept, read_documents(corpus, labelled=loaded.labels is not None))))
    attributes = {"tokenizer": loaded.tokenizer_fingerprint, "max_length": length}
    ref = CorpusStore.write(StoreFolders(store).corpora, documents, attributes, corpus.fields)
    written = CorpusStore.open(ref)
    if left_out:
        run_logger().warning("%s documents were withdrawn and are left out", len(left_out))
    if written.n_examples == 0:
        reason = " was not withdrawn and" if left_out else ""
        raise InputError(f"{', '.join(corpus.files)}: no document{reason} has the two tokens an example needs")
    run_logger().info(
        "%s documents, %s windows, %s tokens",
        f"{written.n_documents:,}",
        f"{written.n_examples:,}",
        f"{written.n_tokens:,}",
    )
    checked.log()
    without = sum(count == 0 for count in written.column("n_windows").to_pylist())
    if without:
        run_logger().warning("%s documents have fewer than 2 tokens: they get no score", without)
    return ref


def prepare_queries(store: str, model: ModelConfig, queries: QueriesConfig) -> StoreRef:
    """Read and tokenise the queries; a prompt without a completion is completed by the model, greedily.

    Raises:
        InputError: a query or the file cannot be used.
    """
    loaded = load(model)

    def tokenised() -> Iterator[TokenisedDocument]:
        asked = 0
        for query in read_queries(queries):
            asked += query.completion is None
            if asked == 1 and query.completion is None and getattr(loaded.tokenizer, "chat_template", None):
                run_logger().warning("the model has a chat template; prompts are completed as they are, without it")
            if loaded.labels is not None:
                yield _classified_query(loaded, query)
                continue
            if query.completion is None:
                yield _answered(loaded, query, queries.max_new_tokens)
                continue
            yield tokenised_query(
                loaded.tokenizer, query.id, query.prompt, query.completion, query.where, loaded.max_positions
            )

    checked = _Checked(loaded, "queries")
    attributes = {"tokenizer": loaded.tokenizer_fingerprint, "max_length": None}
    ref = CorpusStore.write(StoreFolders(store).corpora, checked.all(tokenised()), attributes)
    run_logger().info("%s queries", CorpusStore.open(ref).n_documents)
    checked.log()
    return ref


class _Checked:
    """Tokenised documents on their way into a store: none with a token that the model does not know; remarks counted.

    Args:
        loaded: the model that will read them.
        what: they are, in the plural.
    """

    def __init__(self, loaded: LoadedModel, what: str) -> None:
        self._loaded, self._what = loaded, what
        self._remarks: Counter[str] = Counter()

    def all(self, documents: Iterable[TokenisedDocument]) -> Iterator[TokenisedDocument]:
        """The same documents.

        Raises:
            InputError: a token is beyond the model's embedding.
        """
        n_embedded = self._loaded.n_embedded
        for document in documents:
            if n_embedded is not None and len(document.tokens) and int(document.tokens.max()) >= n_embedded:
                token = int(document.tokens.max())
                raise InputError(
                    f"{document.document_id!r} of the {self._what} needs token {token} "
                    f"({self._loaded.tokenizer.convert_ids_to_tokens(token)!r}), but the model embeds only ids up to "
                    f"{n_embedded - 1}: the tokenizer is not this model's, or its embedding was never resized"
                )
            self._remarks.update(document.remarks)
            yield document

    def log(self) -> None:
        """Say how many of them each remark is of."""
        for remark, count in self._remarks.items():
            run_logger().warning("%s of the %s %s", f"{count:,}", self._what, remark)


def _classified_query(loaded: LoadedModel, query: Query) -> TokenisedDocument:
    """The class of a query is its completion, or what the model says."""
    text = classified_text(loaded.tokenizer, query.id, "", query.prompt, 0, loaded.max_positions)
    if query.completion is not None:
        label = class_number(query.completion.strip(), loaded.labels or (), f"{query.where}, field 'completion'")
    else:
        input_ids = torch.from_numpy(text.tokens[None].astype("int64")).to(loaded.device)
        with torch.no_grad():
            label = int(loaded.model(input_ids=input_ids).logits[0].argmax())
    said = f"{query.prompt}\n→ {(loaded.labels or ())[label]}"
    return replace(text, text=said, label=label, n_prompt_characters=len(query.prompt))


@torch.no_grad()
def _answered(loaded: LoadedModel, query: Query, max_new_tokens: int) -> TokenisedDocument:
    """A prompt with what the model says after it: greedy, until its end token or `max_new_tokens`."""
    prompt = prompt_tokens(loaded.tokenizer, query.prompt)
    where = f"{query.where}, query {query.id!r}"
    room = max_new_tokens if loaded.max_positions is None else min(max_new_tokens, loaded.max_positions - len(prompt))
    if not prompt or room < 1:
        raise InputError(f"{where}: a prompt of {len(prompt)} tokens leaves the model no room to complete it")
    said = greedy_tokens(loaded, prompt, room)
    ends = end_tokens(loaded)
    if all(token in ends for token in said):
        raise InputError(f"{where}: the model adds nothing to this prompt; give the query a completion")
    # Decoded after the prompt, a first piece keeps the space before it; what people read is only a text of the ids.
    decode = partial(loaded.tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    before, whole = decode(prompt), decode([*prompt, *said])
    text = whole[len(before) :] if whole.startswith(before) else decode(said)
    return answered_query(query.id, query.prompt, text, [*prompt, *said], len(prompt), query.where, None)
