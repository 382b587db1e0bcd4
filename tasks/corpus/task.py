"""Prefect tasks that turn documents and queries into a corpus store."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from prefect import task

from storage.corpus import CorpusStore, TokenisedDocument
from storage.errors import InputError
from storage.locations import StoreFolders
from storage.ref import StoreRef
from storage.withdrawals import Withdrawals
from tasks.corpus.config import CorpusConfig, QueriesConfig
from tasks.corpus.documents import Document, Query
from tasks.corpus.readers import read_documents, read_queries
from tasks.corpus.windows import class_number, classified_text, tokenised_document, tokenised_query
from tasks.model.config import ModelConfig
from tasks.model.loading import LoadedModel, load
from tasks.progress import run_logger
from tasks.retries import RETRIED

__all__ = ["prepare_corpus", "prepare_queries"]


@task(
    name="prepare-corpus",
    task_run_name="read and cut the corpus",
    **RETRIED,
)
def prepare_corpus(store: str, model: ModelConfig, corpus: CorpusConfig) -> StoreRef:
    """Read, check and tokenise the documents.

    Raises:
        InputError: a document, a file or the window length cannot be used; nothing is left behind.
    """
    loaded = load(model)
    if loaded.max_positions is not None and corpus.max_length > loaded.max_positions:
        raise InputError(
            f"--corpus.max_length {corpus.max_length}: the model reads at most {loaded.max_positions} tokens; "
            f"pass --corpus.max_length {loaded.max_positions} or less"
        )

    def tokenised(document: Document) -> TokenisedDocument:
        if loaded.labels is None:
            return tokenised_document(loaded.tokenizer, document, corpus.max_length)
        label = class_number(document.label or "", loaded.labels, f"{document.where}, field {corpus.label!r}")
        text = classified_text(loaded.tokenizer, document.id, document.source, document.text, label, corpus.max_length)
        return replace(text, fields=document.fields)

    withdrawn, left_out = Withdrawals(store), []

    def kept(document: Document) -> bool:
        if withdrawn.covers(document.id, document.source):
            left_out.append(document.id)
            return False
        return True

    documents = map(tokenised, filter(kept, read_documents(corpus, labelled=loaded.labels is not None)))
    attributes = {"tokenizer": loaded.tokenizer_fingerprint, "max_length": corpus.max_length}
    ref = CorpusStore.write(StoreFolders(store).corpora, documents, attributes, corpus.fields)
    written = CorpusStore.open(ref)
    if left_out:
        run_logger().warning("%s documents were withdrawn and are left out", len(left_out))
    if written.n_examples == 0:
        reason = "was not withdrawn and" if left_out else ""
        raise InputError(f"{', '.join(corpus.files)}: no document {reason} has the two tokens an example needs")
    run_logger().info(
        "%s documents, %s windows, %s tokens",
        f"{written.n_documents:,}",
        f"{written.n_examples:,}",
        f"{written.n_tokens:,}",
    )
    without = sum(count == 0 for count in written.column("n_windows").to_pylist())
    if without:
        run_logger().warning("%s documents have fewer than 2 tokens: they get no score", without)
    return ref


@task(
    name="prepare-queries",
    task_run_name="read and complete the queries",
    **RETRIED,
)
def prepare_queries(store: str, model: ModelConfig, queries: QueriesConfig) -> StoreRef:
    """Read and tokenise the queries; a prompt without a completion is completed by the model, greedily.

    Raises:
        InputError: a query or the file cannot be used.
    """
    loaded = load(model)

    def tokenised() -> Iterator[TokenisedDocument]:
        for query in read_queries(queries):
            if loaded.labels is not None:
                yield _classified_query(loaded, query)
                continue
            completion = query.completion
            if completion is None:
                completion = _completion(
                    loaded, query.prompt, queries.max_new_tokens, f"{query.where}, query {query.id!r}"
                )
            yield tokenised_query(
                loaded.tokenizer, query.id, query.prompt, completion, query.where, loaded.max_positions
            )

    attributes = {"tokenizer": loaded.tokenizer_fingerprint, "max_length": None}
    ref = CorpusStore.write(StoreFolders(store).corpora, tokenised(), attributes)
    run_logger().info("%s queries", CorpusStore.open(ref).n_documents)
    return ref


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
def _completion(loaded: LoadedModel, prompt: str, max_new_tokens: int, where: str) -> str:
    """What the model says after a prompt: greedy, until its end token or `max_new_tokens`."""
    encoding = loaded.tokenizer(prompt, return_tensors="pt").to(loaded.device)
    length = encoding["input_ids"].shape[1]
    room = max_new_tokens if loaded.max_positions is None else min(max_new_tokens, loaded.max_positions - length)
    if length == 0 or room < 1:
        raise InputError(f"{where}: a prompt of {length} tokens leaves the model no room to complete it")
    output = loaded.model.generate(  # type: ignore[operator]  # typed as the base of all models
        input_ids=encoding["input_ids"],
        attention_mask=encoding["attention_mask"],
        max_new_tokens=room,
        do_sample=False,
        num_beams=1,
        pad_token_id=loaded.tokenizer.pad_token_id or loaded.tokenizer.eos_token_id or 0,
    )
    completion: str = loaded.tokenizer.decode(output[0, length:], skip_special_tokens=True)
    if not completion.strip():
        raise InputError(f"{where}: the model adds nothing to this prompt; give the query a completion")
    return completion
