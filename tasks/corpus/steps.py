"""Steps that turn documents and queries into a corpus store."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from dataworth.storage.corpus import CorpusStore, TokenisedDocument
from dataworth.storage.errors import InputError
from dataworth.storage.locations import StoreFolders
from dataworth.storage.plain_files import open_plain
from dataworth.storage.ref import StoreRef
from dataworth.storage.spelling import setting
from dataworth.storage.withdrawals import Withdrawals
from dataworth.tasks.corpus.chats import ASSISTANT, asked_tokens
from dataworth.tasks.corpus.config import CorpusConfig, QueriesConfig
from dataworth.tasks.corpus.documents import Document, Query
from dataworth.tasks.corpus.near_copies import NearCopies, near_copies
from dataworth.tasks.corpus.readers import read_documents, read_queries
from dataworth.tasks.corpus.rejected import Rejected
from dataworth.tasks.corpus.taught import Taught
from dataworth.tasks.corpus.windows import (
    NOTHING_TAUGHT,
    answered_query,
    asked_chat,
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

__all__ = ["prepare_corpus", "prepare_queries", "taught_by"]

MAX_TEMPLATE_BYTES = 2**20


def prepare_corpus(store: str, model: ModelConfig, corpus: CorpusConfig) -> StoreRef:
    """Read, check and tokenise the documents.

    Raises:
        InputError: a document, a file or the window length cannot be used; nothing is left behind.
    """
    loaded = load(model)
    length = corpus.window(loaded.max_positions)
    taught = taught_by(corpus)
    rejected = Rejected(corpus.on_bad_row)

    def tokenised(document: Document) -> TokenisedDocument:
        if loaded.labels is None:
            return tokenised_document(loaded.tokenizer, document, length, taught)
        label = class_number(document.label or "", loaded.labels, f"{document.where}, field {corpus.label!r}")
        text = classified_text(loaded.tokenizer, document.id, document.source, document.text, label, length)
        return replace(text, fields=document.fields)

    withdrawn, left_out = Withdrawals(store), []

    def kept(document: Document) -> bool:
        if withdrawn.covers(document.id, document.source):
            left_out.append(document.id)
            return False
        return True

    def read() -> Iterator[TokenisedDocument]:
        for document in filter(kept, read_documents(corpus, rejected, labelled=loaded.labels is not None)):
            made = None
            with rejected.told():
                made = tokenised(document if copies is None else copies.marked(document))
            if made is not None:
                yield checked.one(made)
        rejected.stop()

    def stays(document: Document) -> bool:
        """Where rows may be left out: is this one read?"""
        if withdrawn.covers(document.id, document.source):
            return False
        if corpus.on_bad_row == "stop":
            return True
        try:
            tokenised(document)
        except InputError:
            return False
        return True

    copies = _near_copies(corpus, stays, labelled=loaded.labels is not None)
    checked = _Checked(loaded, "documents")
    attributes = {"tokenizer": loaded.tokenizer_fingerprint, "max_length": length}
    ref = CorpusStore.write(StoreFolders(store).corpora, read(), attributes, corpus.kept_fields, rejected.sentences)
    written = CorpusStore.open(ref)
    if rejected.sentences:
        run_logger().warning("%s rows cannot be read and are left out", f"{len(rejected.sentences):,}")
    if left_out:
        run_logger().warning("%s documents were withdrawn and are left out", len(left_out))
    if written.n_examples == 0:
        reason = " was not withdrawn and" if left_out else ""
        if rejected.sentences:
            raise InputError(f"{rejected.sentences[0]} ({len(rejected.sentences):,} rows cannot be read, and no other)")
        lacking = "the two tokens an example needs"
        if NOTHING_TAUGHT in checked.remarks:
            lacking = f"a token that is taught among its first {length}; pass a larger {setting('corpus.max_length')}"
        raise InputError(f"{', '.join(corpus.files)}: no document{reason} has {lacking}")
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


def _near_copies(corpus: CorpusConfig, stays: Callable[[Document], bool], *, labelled: bool) -> NearCopies | None:
    """From a pass of its own over the documents that stay; None: nobody asked."""
    if corpus.near_copies is None:
        return None
    read = read_documents(corpus, Rejected(corpus.on_bad_row), labelled=labelled)
    found = near_copies(filter(stays, read), corpus.near_copies)
    copies, shared = sum(first != name for name, first in found.first.items()), len(found.owners)
    run_logger().info(
        "%s near copies of other documents; %s texts are of several sources", f"{copies:,}", f"{shared:,}"
    )
    return found


def prepare_queries(
    store: str, model: ModelConfig, queries: QueriesConfig, chat_template: str | None = None
) -> StoreRef:
    """Read and tokenise the queries; a prompt without a completion is completed by the model, greedily.

    Args:
        store: root of the stores.
        model: that completes them.
        queries: their file.
        chat_template: file of the template that training used; None: the model's own.

    Raises:
        InputError: a query or the file cannot be used.
    """
    loaded, template = load(model), _template(chat_template)

    def tokenised() -> Iterator[TokenisedDocument]:
        asked = 0
        for query in read_queries(queries):
            asked += query.completion is None and query.chat is None
            if (
                asked == 1
                and query.completion is None
                and query.chat is None
                and getattr(loaded.tokenizer, "chat_template", None)
            ):
                run_logger().warning("the model has a chat template; prompts are completed as they are, without it")
            if loaded.labels is not None:
                if query.chat is not None:
                    raise InputError(f"{query.where}: a conversation, and a classifier reads texts; give a prompt")
                yield _classified_query(loaded, query)
                continue
            if query.chat is not None and query.chat.messages[-1]["role"] == ASSISTANT:
                yield asked_chat(loaded.tokenizer, query.id, query.chat, template, query.where, loaded.max_positions)
                continue
            if query.completion is None:
                yield _answered(loaded, query, queries.max_new_tokens, template)
                continue
            yield tokenised_query(
                loaded.tokenizer, query.id, query.prompt, query.completion, query.where, loaded.max_positions
            )

    checked = _Checked(loaded, "queries")
    attributes = {"tokenizer": loaded.tokenizer_fingerprint, "max_length": None}
    ref = CorpusStore.write(StoreFolders(store).corpora, map(checked.one, tokenised()), attributes)
    run_logger().info("%s queries", CorpusStore.open(ref).n_documents)
    checked.log()
    return ref


def taught_by(corpus: CorpusConfig) -> Taught:
    """How a training read the corpus, as its parameters say.

    Raises:
        InputError: the file of the chat template cannot be read.
    """
    return Taught(corpus.loss, _template(corpus.chat_template), corpus.eos)


def _template(file: str | None) -> str | None:
    if file is None:
        return None
    name = f"{setting('corpus.chat_template')} {file}"
    try:
        with open_plain(Path(file), name) as opened:
            content = opened.read(MAX_TEMPLATE_BYTES + 1)
        if len(content) > MAX_TEMPLATE_BYTES:
            raise InputError(f"{name}: longer than {MAX_TEMPLATE_BYTES:,} bytes, as no template is")
        return content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


class _Checked:
    """Tokenised documents on their way into a store: none with a token that the model does not know; remarks counted.

    Args:
        loaded: the model that will read them.
        what: they are, in the plural.
    """

    def __init__(self, loaded: LoadedModel, what: str) -> None:
        self._loaded, self._what = loaded, what
        self._remarks: Counter[str] = Counter()

    def one(self, document: TokenisedDocument) -> TokenisedDocument:
        """The same document.

        Raises:
            InputError: a token is beyond the model's embedding.
        """
        n_embedded = self._loaded.n_embedded
        if n_embedded is not None and len(document.tokens) and int(document.tokens.max()) >= n_embedded:
            token = int(document.tokens.max())
            raise InputError(
                f"{document.document_id!r} of the {self._what} needs token {token} "
                f"({self._loaded.tokenizer.convert_ids_to_tokens(token)!r}), but the model embeds only ids up to "
                f"{n_embedded - 1}: the tokenizer is not this model's, or its embedding was never resized"
            )
        self._remarks.update(document.remarks)
        return document

    @property
    def remarks(self) -> Collection[str]:
        """What was to be said of any."""
        return self._remarks.keys()

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
def _answered(loaded: LoadedModel, query: Query, max_new_tokens: int, template: str | None) -> TokenisedDocument:
    """A prompt with what the model says after it: greedy, until its end token or `max_new_tokens`."""
    where = f"{query.where}, query {query.id!r}"
    if query.chat is None:
        asked, prompt = query.prompt, prompt_tokens(loaded.tokenizer, query.prompt)
    else:
        asked, prompt = asked_tokens(loaded.tokenizer, query.chat, template, where)
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
    return answered_query(query.id, asked, text, [*prompt, *said], len(prompt), query.where, None)
