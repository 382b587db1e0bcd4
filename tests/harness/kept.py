"""The whole of a valuation, an audit and a search without a server, on inputs that are changed in place."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as hf
import zarr
from peft import LoraConfig, get_peft_model
from prefect import Flow, Task
from pydantic import BaseModel

import dataworth.audit_valuation
import dataworth.problems
import dataworth.tasks.counterfactual.trainings
import dataworth.valuing
from dataworth.candidates import candidates_of
from dataworth.config import AuditRunConfig, CorpusRunConfig, SearchConfig, ValueConfig
from dataworth.preparing import PLAIN, prepared_stores, store_folder
from dataworth.search import search
from dataworth.storage.coalitions import CoalitionStore
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.ref import StoreRef
from dataworth.storage.scores import ScoreStore
from dataworth.tasks.corpus.config import CorpusConfig
from dataworth.tasks.corpus.steps import prepare_corpus
from dataworth.tasks.curvature.config import CurvatureConfig
from dataworth.tasks.curvature.steps import fit_covariances
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import load
from dataworth.tasks.projection.config import ProjectionConfig
from dataworth.tasks.projection.steps import make_bases
from dataworth.tasks.report.account import Account
from dataworth.tasks.report.results.candidates import candidates_said
from dataworth.tasks.training.small_model import SmallModel, train_language_model, train_tokenizer
from dataworth.valuing import Checkpoint, Timings, refuse_unlike, valued_checkpoint
from tests.reference.checkpoints import TEXTS

__all__ = ["TOLERANCE", "Inputs", "Tables", "audited", "bodies", "differing", "leaves", "searched", "valued"]

Tables = dict[str, pd.DataFrame]

MODULES = (
    dataworth.audit_valuation,
    dataworth.problems,
)
SHAPE = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "max_position_embeddings": 48}
MAX_LENGTH = 16
# Of a chat; what the assistant says is found by its turns.
TEMPLATE = "{% for message in messages %}{{ message['role'][0] + ' says ' + message['content'] }}{% endfor %}"
# Of the input "trained", from the input "base" on.
TRAINING = {"epochs": 2, "batch_tokens": 32, "learning_rate": 0.05, "weight_decay": 0.1}
# Of the largest number of a column: how far float32 sums over other batches may lie from each other.
TOLERANCE = 1e-3


@contextmanager
def bodies() -> Iterator[None]:
    """Flows and tasks run as their bodies, and their Dask clients are those of one cluster of a thread."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
        pytest.MonkeyPatch.context() as patched,
    ):

        @contextmanager
        def shared(*_: Any) -> Iterator[Any]:
            yield client

        patched.setattr(dataworth.tasks.counterfactual.trainings, "dask_client", shared)
        for module in MODULES:
            for name, value in list(vars(module).items()):
                if isinstance(value, Task | Flow):
                    patched.setattr(module, name, value.fn)
        yield


def leaves(model: type[BaseModel], before: str = "") -> Iterator[str]:
    """Dotted names of everything that can be set in a configuration."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if inner:
            yield from leaves(inner[0], f"{before}{name}.")
        else:
            yield f"{before}{name}"


class Inputs:
    """Everything a run reads, in one folder, as it was first until something in it is changed.

    Args:
        folder: made; `as it was` in it holds copies of what may be changed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._kept = folder / "in use", folder / "as it was"
        self._kept.mkdir(parents=True)
        tokenizer = train_tokenizer(TEXTS, 290)
        train_tokenizer(TEXTS[5:], 270).save_pretrained(self._kept / "tokenizer")
        for number, name in enumerate(("model", "other", "base")):
            _save_language_model(self._kept / name, tokenizer, number)
        _save_classifier(self._kept / "classifier", tokenizer, 3)
        _save_classifier(self._kept / "classifier base", tokenizer, 4)
        rows = [
            {"id": f"d{n}", "source": f"s{n % 4}", "publisher": "pq"[n % 2], "text": text, "label": f"LABEL_{n % 2}"}
            | {"name": f"n{n}", "owner": f"o{n % 3}", "title": f"{text[:30]} {n}", "class": f"LABEL_{n // 2 % 2}"}
            for n, text in enumerate([*TEXTS[:7], " ".join(TEXTS[5:8])])
        ]
        self._write("corpus.jsonl", rows)
        self._write("chats.jsonl", [_chat(row, TEXTS[number]) for number, row in enumerate(rows)])
        (self._kept / "template.jinja").write_text(TEMPLATE)
        (self._kept / "other.jinja").write_text(TEMPLATE.replace("says", "said"))
        self._write("fewer.jsonl", rows[:6])
        again = {**rows[0], "id": "d8", "source": "s1", "name": "n8", "text": f"{rows[0]['text']} again"}
        self._write("copies.jsonl", [*rows, again])
        settings = SmallModel(positions=MAX_LENGTH, **TRAINING)
        texts = [row["text"] for row in rows]
        train_language_model(texts, self._kept / "trained", settings, lambda *_: None, tokenizer, self._kept / "base")
        asked = [{"id": f"q{n}", "prompt": TEXTS[n][:18], "completion": TEXTS[n][18:36]} for n in (8, 9)]
        self._write("queries.jsonl", asked)
        self._write("one query.jsonl", asked[:1])
        self._write("swapped.jsonl", asked[::-1])
        self._write("split.jsonl", [{"id": "q8", "prompt": "The way to", "completion": " the sea"}])
        self._write("prompts.jsonl", [{"id": "q8", "prompt": TEXTS[8][:18]}])
        self._write(
            "classes.jsonl",
            [{"id": "q8", "prompt": TEXTS[8], "completion": "LABEL_1"}, {"id": "q9", "prompt": TEXTS[9]}],
        )
        self.restore()
        self._save_adapter()
        self._save_bases(0)
        self._save_bases(1)
        self.restore()

    def __getitem__(self, name: str) -> str:
        return str(self.folder / name)

    def restore(self) -> None:
        """All as it was, with the times it had."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self._kept, self.folder)

    def rows(self, name: str, change: Callable[[list[dict[str, Any]]], Any]) -> None:
        """Change the rows of a file; `change` returns the new ones, or changes them in place and returns None."""
        path = self.folder / name
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        changed = change(rows)
        path.write_text("".join(f"{json.dumps(row)}\n" for row in (rows if changed is None else changed)))

    def settings(self, name: str, **changed: Any) -> None:
        """Change a JSON file."""
        path = self.folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    def weights(self, name: str) -> None:
        """Other weights of a checkpoint, of the same shapes."""
        kind = hf.AutoModelForSequenceClassification if "classifier" in name else hf.AutoModelForCausalLM
        model = kind.from_pretrained(self.folder / name)
        _moved(model, 99, 0.1)
        model.save_pretrained(self.folder / name)

    def _write(self, name: str, rows: list[dict[str, Any]]) -> None:
        (self._kept / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def _save_adapter(self) -> None:
        torch.manual_seed(5)
        model = hf.AutoModelForCausalLM.from_pretrained(self.folder / "model")
        tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if "lora_" in name:
                    parameter.copy_(0.3 * torch.randn_like(parameter))
        tuned.save_pretrained(self._kept / "adapter")

    def _save_bases(self, number: int) -> None:
        """PCA bases of rank 2, by another seed of the labels the second time."""
        store, model = str(self.folder / "store"), ModelConfig(name=self["model"])
        corpus = prepare_corpus(store, model, CorpusConfig(files=[self["corpus.jsonl"]], max_length=MAX_LENGTH))
        covariances = fit_covariances(store, model, corpus, CurvatureConfig(seed=number), 64)
        bases = make_bases(store, model, ProjectionConfig(kind="pca", rank=2), covariances)
        shutil.copytree(bases.location, self._kept / ("bases" if number == 0 else "other bases"))


def _chat(row: dict[str, Any], text: str) -> dict[str, Any]:
    """The same document as a conversation and as a pair, and others of the same form."""
    turns = [{"role": "user", "content": text[:9]}, {"role": "assistant", "content": text[9:24]}] * 2
    return {
        **{name: row[name] for name in ("id", "source", "publisher")},
        "messages": turns,
        "turns": turns[:3],
        "prompt": text[:12],
        "completion": text[12:30],
        "asked": text[:6],
        "said": text[20:40],
    }


def _save_language_model(folder: Path, tokenizer: Any, seed: int) -> None:
    torch.manual_seed(4)  # all near each other
    config = hf.LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **SHAPE, **SPECIAL)
    _save(hf.LlamaForCausalLM(config), folder, tokenizer, seed)


def _save_classifier(folder: Path, tokenizer: Any, seed: int) -> None:
    torch.manual_seed(4)
    config = hf.BertConfig(vocab_size=len(tokenizer), num_labels=2, **SHAPE, **SPECIAL)
    _save(hf.BertForSequenceClassification(config), folder, tokenizer, seed)


def _save(model: Any, folder: Path, tokenizer: Any, seed: int) -> None:
    _moved(model, seed, 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _moved(model: torch.nn.Module, seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def valued(given: Mapping[str, Any], store: Path) -> Tables:
    """What `dataworth value` makes: corpus and queries, scores and values of every grouping."""
    config = ValueConfig.model_validate({**given, "store": str(store), "results": str(store)})
    refuse_unlike(config)
    config = config.settled(load(config.model.checkpoints[0]).n_classes is not None)
    found: list[Checkpoint] = []
    for one in dataworth.valuing._by_checkpoint(config):
        made = valued_checkpoint(one, store_folder(config), found[0].queries if found else None, Timings(), PLAIN)
        found.append(made)
    scores, values = found[0].scores, found[0].values
    if len(found) > 1:
        scores, values = dataworth.valuing._averaged(config, store_folder(config), found, PLAIN)
    tables = {"corpus": _documents(found[0].corpus), "queries": _documents(found[0].queries)}
    for number, (scored, valuation) in enumerate(zip(scores, values, strict=True)):
        tables |= {f"{name} {number}": table for name, table in (*_scores(scored), *_values(valuation))}
    points = [point for each in found for point in each.points]
    candidates = candidates_of(config, store_folder(config), points, Timings(), PLAIN)
    if candidates is not None:
        account = Account("marginal", CorpusStore.open(found[0].queries).n_documents)
        tables["candidates"] = candidates_said(candidates, found[0].corpus, account).table
    if config.certify:
        certificate = dataworth.valuing._certificate(config, store_folder(config), found[0], PLAIN, Timings())
        tables["certificate"] = pd.DataFrame([{"fingerprint": certificate.fingerprint}])
    return tables


def _documents(ref: StoreRef) -> pd.DataFrame:
    return pd.DataFrame(list(CorpusStore.open(ref).documents()))


def _scores(ref: StoreRef) -> Iterator[tuple[str, pd.DataFrame]]:
    store = ScoreStore.open(ref)
    yield "passages", store.passages.to_pandas()
    yield "sums", store.source_sums.to_pandas()
    if store.manifest["attributes"]["by_layer"]:
        yield "layers", store.layer_scores.to_pandas()
    if store.manifest["attributes"]["save_matrix"]:
        group = zarr.open_group(store.matrix_path.array_store(), mode="r")
        matrix = pd.DataFrame(group["scores"][...].T, columns=group["query_id"][...].tolist())
        yield "matrix", matrix.assign(id=group["document_id"][...].tolist()).sort_values("id", ignore_index=True)


def _values(ref: StoreRef) -> Iterator[tuple[str, pd.DataFrame]]:
    store = CoalitionStore.open(ref)
    yield "values", store.values.to_pandas()
    if store.overlap is not None:
        yield "overlap", store.overlap.to_pandas()
    if store.documents is not None:
        yield "document values", store.documents.to_pandas().sort_values("document_id", ignore_index=True)
    yield "notes", pd.DataFrame([store.attributes["notes"]])


def audited(given: Mapping[str, Any], store: Path) -> Tables:
    """What `dataworth audit` finds, apart from seconds and bytes."""
    config = AuditRunConfig.model_validate({**given, "store": str(store), "results": str(store)})
    made = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dataworth.audit_valuation, "publish_audit", lambda _results, audit: made.append(audit))
        patched.setattr(dataworth.audit_valuation, "_logged", lambda *_: {})
        dataworth.audit_valuation._audited(config, str(store), str(store))
    (audit,) = made
    rows = pd.DataFrame(audit.findings["rows"]).drop(columns=["seconds", "bytes"])
    counts = {name: value for name, value in audit.findings.items() if name.startswith("n_")}
    tables = {"rows": rows, "ceiling": pd.DataFrame([audit.findings["ceiling"] | counts])}
    tables["trials"] = pd.json_normalize(audit.trials)
    return tables


def searched(given: Mapping[str, Any], store: Path) -> Tables:
    """What `dataworth search` finds in a corpus that was indexed."""
    config = SearchConfig.model_validate({**given, "store": str(store)})
    narrowed = CorpusRunConfig.model_validate(config.model_dump(include=set(CorpusRunConfig.model_fields)))
    for one in narrowed.by_checkpoint:
        PLAIN.index(one, prepared_stores(one, PLAIN))
    found = search(config)
    return {"text": pd.DataFrame([{"text": found.text}]), "documents": pd.DataFrame(found.documents)}


def differing(one: Tables, two: Tables, tolerance: float = TOLERANCE) -> list[str]:
    """Names of tables and columns that are not the same, up to a part of a column's largest number."""
    found = sorted(one.keys() ^ two.keys())
    for name in sorted(one.keys() & two.keys()):
        first, second = one[name], two[name]
        if list(first.columns) != list(second.columns) or len(first) != len(second):
            found.append(name)
            continue
        found += [f"{name}: {column}" for column in first if not _same(first[column], second[column], tolerance)]
    return found


def _same(one: "pd.Series[Any]", two: "pd.Series[Any]", tolerance: float) -> bool:
    if not (pd.api.types.is_numeric_dtype(one) and pd.api.types.is_numeric_dtype(two)):
        return list(map(str, one)) == list(map(str, two))
    a, b = one.to_numpy(np.float64, na_value=np.nan), two.to_numpy(np.float64, na_value=np.nan)
    if np.array_equal(a, b, equal_nan=True):
        return True
    known = np.abs(a[np.isfinite(a)])
    scale = float(known.max()) if len(known) else 0.0
    return bool(np.allclose(a, b, rtol=0, atol=tolerance * scale, equal_nan=True))
