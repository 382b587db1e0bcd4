"""Families of settings that keep other results, another value for everything that can be set, and changes in place."""

import json
import shutil
from collections.abc import Callable
from typing import Any

from safetensors.torch import load_file, save_file

from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.generation import greedy_tokens
from dataworth.tasks.model.loading import load
from tests.harness.kept import MAX_LENGTH, TRAINING, Inputs

Change = Callable[[Inputs], Any]

__all__ = [
    "AUDIT",
    "AUDIT_NOTHING",
    "CHANGES",
    "FAMILIES",
    "MAX_COLUMNS",
    "SEARCH",
    "SEARCH_NOTHING",
    "VALUE",
    "VALUE_NOTHING",
    "resolved",
]

# A text that begins so is the path of an input.
PATH = "in:"

QUERIES = "queries.jsonl"
CORPUS = {"files": ["in:corpus.jsonl"], "max_length": MAX_LENGTH, "fields": ["publisher"]}
COMMON: dict[str, Any] = {
    "model": {"name": "in:model"},
    "corpus": CORPUS,
    "queries": {"file": "in:queries.jsonl"},
    "projection": {"rank": 2},
    "curvature": {"draws": 1},
    "gradients": {"dtype": "float32", "batch_tokens": 64},
    "sources": {"game": "additive"},
}
COPIES = {**CORPUS, "files": ["in:copies.jsonl"]}
CHATS = {**CORPUS, "files": ["in:chats.jsonl"], "chat_template": "in:template.jinja", "max_length": 48}
WITH_BASE = {"model": {"name": "in:model", "base": "in:base"}}
CLASSES = {"corpus": {**CORPUS, "max_length": 32}, "queries": {"file": "in:classes.jsonl"}}
GAME: dict[str, Any] = {"fallback": False, "document_groups": 2}
QUADRATIC = {"game": "newton", "utility": "quadratic", **GAME}
KEPT = {"save_matrix": True, "by_layer": True, "top_k": 3}
LOW = {"rule": "absolute", "value": 1e-3}

# What is not said is as in COMMON.
FAMILIES: dict[str, dict[str, Any]] = {
    "additive": {"scoring": KEPT, "sources": {"game": "additive", "by": ["source", "publisher>source"]}},
    "pca, ekfac": {"projection": {"kind": "pca", "rank": 2}, "curvature": {"kind": "ekfac", "draws": 1}},
    "identity, kfac": {"projection": {"kind": "identity"}, "curvature": {"kind": "kfac", "draws": 1}},
    "points": {**WITH_BASE, "sources": {"game": "additive"}},
    "chats": {"corpus": {**CHATS, "form": "messages"}},
    "pairs": {"corpus": {**CHATS, "form": "pairs"}},
    "owners": {"corpus": {**COPIES, "near_copies": 1.0}, "sources": {"game": "additive", "by": ["owners"]}},
    "nothing kept": {
        "projection": {"kind": "identity"},
        "curvature": {"kind": "ekfac", "draws": 1},
        "gradients": {"batch_tokens": 64, "keep": "none", "query_error": 0.3},
    },
    "low rank": {
        "projection": {"kind": "identity"},
        "curvature": {"draws": 1, "low_rank": 2, "damping": LOW},
    },
    "int8": {"gradients": {"dtype": "int8", "batch_tokens": 64}, "scoring": KEPT},
    "earlier bases": {"projection": {"bases": "in:bases"}, "sources": QUADRATIC, **WITH_BASE},
    "adapter": {"model": {"name": "in:adapter"}},
    "classifier": {"model": {"name": "in:classifier"}, **CLASSES},
    "classifier, auto": {
        "model": {"name": "in:classifier", "base": "in:classifier base"},
        "sources": {"game": "auto", **GAME},
        **CLASSES,
    },
    "prompts": {"queries": {"file": "in:prompts.jsonl", "max_new_tokens": 6}},
    "split": {"queries": {"file": "in:split.jsonl"}},
    "evaluated": {"sources": {"game": "newton", **GAME}, **WITH_BASE},
    "linear": {"sources": {"game": "newton", "utility": "linear", **GAME}, **WITH_BASE},
    "sampled": {"sources": {**QUADRATIC, "by": ["publisher>source", "title"], "budget": 40}, **WITH_BASE},
    "beta": {"sources": {**QUADRATIC, "semivalue": "beta", "alpha": 3, "beta": 2, "pull": 2.0}, **WITH_BASE},
    "without a base": {"sources": QUADRATIC},
    "path": {"sources": {"game": "path", "document_values": True, **GAME}, **WITH_BASE},
    "interaction": {"sources": {"game": "interaction", **GAME}, **WITH_BASE},
    "falling back": {"sources": {"game": "newton", "fallback": True}, **WITH_BASE},
    "ledger": {"sources": {"game": "ledger", "fallback": False}, "training": TRAINING, **WITH_BASE},
    "on the way": {"sources": {"checkpoints": ["in:other"], "fallback": False}, **WITH_BASE},
    "merged": {"sources": {"game": "merged", "fallback": False}, "training": TRAINING, **WITH_BASE},
    "retrain": {"sources": {"game": "retrain", "fallback": False}, "training": TRAINING, **WITH_BASE},
    "candidates": {"candidates": {"files": ["in:fewer.jsonl"], "epochs": 1}, "training": TRAINING, **WITH_BASE},
    "replay": {
        "method": "replay",
        "model": {"name": "in:trained", "base": "in:base"},
        "training": TRAINING,
        "scoring": {"save_matrix": True, "top_k": 3},
    },
    "checkpoints": {"model": {"name": ["in:model", "in:other"]}, "scoring": KEPT},
    "checkpoints, path": {
        "model": {"name": ["in:model", "in:other"], "base": "in:base"},
        "sources": {"game": "path", **GAME},
    },
    "projections": {"sources": {**QUADRATIC, "projection_seeds": 2}, **WITH_BASE},
    "audit": {
        "audit": {
            "subsets": 4,
            "seeds": 1,
            "methods": ["configured", "bm25", "random", "leave-one-out"],
            "removal_methods": ["bm25"],
            "removal_queries": 1,
            "patch": 2,
            "patch_queries": 1,
        },
        "training": TRAINING,
        **WITH_BASE,
    },
    "audit, tuned": {
        "audit": {"subsets": 6, "seeds": 1, "methods": ["configured"], "tune": True, "controls": False},
        "training": TRAINING,
        **WITH_BASE,
    },
    "search": {"query": "The river runs", "completion": " down from", "count": 8},
    "search, completed": {"query": "The river runs", "max_new_tokens": 4, "count": 3, "sketch": 16},
}
# Columns beyond which a layer's Fisher is of low rank, so that a small layer has such a one.
MAX_COLUMNS = {"low rank": 70}

# What can be set in `value`, another value of it, and a family whose results that decides.
VALUE: dict[str, tuple[str, Any]] = {
    "model.name": ("additive", ["in:other"]),
    "model.base": ("evaluated", "in:other"),
    "model.tokenizer": ("additive", "in:tokenizer"),
    "model.point": ("points", "end"),
    "model.dtype": ("additive", "bfloat16"),
    "model.adapters": ("adapter", "none"),
    "model.parameters": ("linear", "all"),
    "model.include": ("linear", ["*q_proj", "*v_proj"]),
    "model.exclude": ("retrain", ["*q_proj"]),
    "corpus.files": ("path", ["in:fewer.jsonl"]),
    "candidates.files": ("candidates", ["in:corpus.jsonl"]),
    "candidates.epochs": ("candidates", 2),
    "corpus.id": ("additive", "name"),
    "corpus.source": ("evaluated", "owner"),
    "corpus.text": ("linear", "title"),
    "corpus.label": ("classifier", "class"),
    "corpus.fields": ("pca, ekfac", ["publisher", "owner"]),
    "corpus.max_length": ("interaction", 8),
    "corpus.messages": ("chats", "turns"),
    "corpus.loss": ("chats", "last"),
    "corpus.chat_template": ("chats", "in:other.jinja"),
    "corpus.form": ("chats", "pairs"),
    "corpus.prompt": ("pairs", "asked"),
    "corpus.completion": ("pairs", "said"),
    "corpus.eos": ("pairs", False),
    "corpus.near_copies": ("owners", 0.5),
    "queries.file": ("linear", "in:one query.jsonl"),
    "queries.max_new_tokens": ("prompts", 3),
    "projection.kind": ("path", "mask"),
    "projection.rank": ("additive", 3),
    "projection.ranks": ("linear", ["*q_proj=1"]),
    "projection.seed": ("projections", 7),
    "projection.bases": ("earlier bases", "in:other bases"),
    "curvature.kind": ("identity, kfac", "ekfac"),
    "curvature.labels": ("linear", "empirical"),
    "curvature.draws": ("pca, ekfac", 2),
    "curvature.low_rank": ("low rank", 3),
    "curvature.fraction": ("interaction", 0.5),
    "curvature.seed": ("low rank", 5),
    "curvature.damping.rule": ("without a base", "absolute"),
    "curvature.damping.value": ("without a base", 0.7),
    "gradients.dtype": ("int8", "float16"),
    "gradients.keep": ("identity, kfac", "none"),
    "gradients.query_error": ("nothing kept", 0.6),
    "certify": ("linear", 2),
    "method": ("replay", "influence"),
    "orders": ("replay", 2),
    "scoring.kind": ("checkpoints", "cosine"),
    "scoring.top_k": ("additive", 2),
    "scoring.save_matrix": ("additive", False),
    "scoring.by_layer": ("additive", False),
    "scoring.layers": ("additive", ["*q_proj"]),
    "scoring.sources": ("additive", ["s1"]),
    "scoring.without_sources": ("checkpoints", ["s1"]),
    "sources.game": ("interaction", "path"),
    "sources.utility": ("evaluated", "linear"),
    "sources.semivalue": ("linear", "banzhaf"),
    "sources.alpha": ("beta", 1.0),
    "sources.beta": ("beta", 1.0),
    "sources.pull": ("beta", 5.0),
    "sources.budget": ("sampled", 60),
    "sources.tolerance": ("sampled", 1.0),
    "sources.trainings": ("linear", 5),
    "sources.ledger_every": ("ledger", 2),
    "sources.checkpoints": ("on the way", ["in:other", "in:base"]),
    "sources.seed": ("sampled", 3),
    "sources.fallback": ("falling back", False),
    "sources.by": ("path", ["publisher>source"]),
    "sources.document_groups": ("path", 3),
    "sources.document_values": ("path", False),
    "sources.projection_seeds": ("projections", 3),
    "sources.confidence": ("additive", 0.8),
    "training.epochs": ("retrain", 1),
    "training.batch_tokens": ("retrain", 64),
    "training.learning_rate": ("retrain", 0.02),
    "training.weight_decay": ("retrain", 2.0),
    "training.seed": ("retrain", 4),
}
ELSEWHERE = "where something is or is shown, not what it is"
WHERE_COMPUTED = "where it is computed: the same up to the last digits"
IN_CONTENTS = "part of the contents, as in `value`"
# What can be set and decides no kept result.
VALUE_NOTHING = {
    "scoring.tokens": "of how many passages it is told which tokens taught; in the fingerprint of what is told",
    "model.device": WHERE_COMPUTED,
    "model.shard": WHERE_COMPUTED,
    "gradients.batch_tokens": WHERE_COMPUTED,
    "store": ELSEWHERE,
    "results": ELSEWHERE,
    "overlap": "what a run does beside another one",
    "corpus.on_bad_row": "what follows on rows that cannot be read; those that can be are the corpus",
    "events.share_moved": "of events, which are not kept",
    "sources.payout.rule": "payouts are made of the values each time they are published",
    "sources.payout.floor": "payouts are made of the values each time they are published",
    "sources.payout.minimum_documents": "payouts are made of the values each time they are published",
    **{f"tracking.{name}": ELSEWHERE for name in ("uri", "experiment", "series")},
    **{f"cluster.{name}": WHERE_COMPUTED for name in ("address", "tls_ca", "tls_certificate", "tls_key")},
    **{f"cluster.{name}": WHERE_COMPUTED for name in ("workers", "threads", "processes")},
}

AUDIT: dict[str, tuple[str, Any]] = {
    "audit.subsets": ("audit", 5),
    "audit.fraction": ("audit", 0.7),
    "audit.seeds": ("audit", 2),
    "audit.seed": ("audit", 3),
    "audit.methods": ("audit", ["leave-one-out", "random", "bm25", "configured"]),
    "audit.leave_one_source_out": ("audit", False),
    "audit.removal": ("audit", 0.3),
    "audit.removal_methods": ("audit", ["random"]),
    "audit.removal_queries": ("audit", 2),
    "audit.patch": ("audit", 3),
    "audit.patch_queries": ("audit", 2),
    "audit.patch_length": ("audit", 0.1),
    "audit.controls": ("audit", False),
    "audit.tune": ("audit, tuned", False),
    "model.name": ("audit", ["in:model", "in:other"]),
    "model.base": ("audit", "in:other"),
    "model.tokenizer": ("audit", "in:tokenizer"),
    "model.point": ("audit", "base"),
    "model.dtype": ("audit", "bfloat16"),
    "model.parameters": ("audit", "all"),
    "model.include": ("audit, tuned", ["*q_proj", "*v_proj"]),
    "model.exclude": ("audit", ["*q_proj"]),
    "corpus.files": ("audit", ["in:fewer.jsonl"]),
    "corpus.source": ("audit", "owner"),
    "corpus.text": ("audit", "title"),
    "corpus.max_length": ("audit", 8),
    "queries.file": ("audit", "in:swapped.jsonl"),
    "projection.kind": ("audit", "mask"),
    "projection.rank": ("audit, tuned", 3),
    "projection.ranks": ("audit", ["*q_proj=1"]),
    "projection.seed": ("audit", 7),
    "curvature.kind": ("audit", "none"),
    "curvature.labels": ("audit, tuned", "empirical"),
    "curvature.draws": ("audit, tuned", 2),
    "curvature.seed": ("audit, tuned", 4),
    "curvature.damping.rule": ("audit", "absolute"),
    "curvature.damping.value": ("audit", 90.0),
    "training.epochs": ("audit", 1),
    "training.batch_tokens": ("audit", 64),
    "training.learning_rate": ("audit", 0.02),
    "training.weight_decay": ("audit", 2.0),
}
AUDIT_NOTHING = {
    **{name: reason for name, reason in VALUE_NOTHING.items() if name.partition(".")[0] in ("model", "tracking")},
    **{name: reason for name, reason in VALUE_NOTHING.items() if name.partition(".")[0] in ("cluster", "overlap")},
    "store": ELSEWHERE,
    "results": ELSEWHERE,
    "audit.problem": "one of another name has a fingerprint of its own, which whoever writes it answers for",
    "model.adapters": "adapters have no base to train from again",
    "corpus.id": "documents are numbered",
    **{f"corpus.{name}": IN_CONTENTS for name in ("messages", "prompt", "completion", "form")},
    **{f"corpus.{name}": IN_CONTENTS for name in ("loss", "chat_template", "eos")},
    "corpus.on_bad_row": VALUE_NOTHING["corpus.on_bad_row"],
    "corpus.label": f"of classifiers; {IN_CONTENTS}",
    "corpus.near_copies": "an audit groups by nothing but the source",
    "corpus.fields": "an audit groups by nothing but the source",
    "queries.max_new_tokens": "decides the queries, which are read anew each time",
    "projection.bases": "methods of an audit make their own",
    "curvature.low_rank": "in the fingerprint with the whole configuration of the curvature",
    "curvature.fraction": "methods of an audit are fitted on all documents",
    "training.seed": "trainings have the seeds that audit.seeds counts",
}
SEARCH: dict[str, tuple[str, Any]] = {
    "query": ("search", "A small list of"),
    "completion": ("search", " home"),
    "max_new_tokens": ("search, completed", 2),
    "count": ("search", 2),
}
SEARCH_NOTHING = {"sketch": "kept under its number of columns; what it finds is scored exactly"}


def resolved(given: Any, inputs: Inputs) -> Any:
    """Settings with the paths of inputs."""
    if isinstance(given, dict):
        return {name: resolved(value, inputs) for name, value in given.items()}
    if isinstance(given, list):
        return [resolved(value, inputs) for value in given]
    return inputs[given.removeprefix(PATH)] if isinstance(given, str) and given.startswith(PATH) else given


def _texts(change: Callable[[dict[str, Any]], Any], number: int = 2, file: str = "corpus.jsonl") -> Change:
    """Of one row of a file."""
    return lambda inputs: inputs.rows(file, lambda rows: change(rows[number]))


def _adapter(inputs: Inputs) -> None:
    path = inputs["adapter/adapter_model.safetensors"]
    save_file({name: weights * 1.5 for name, weights in load_file(path).items()}, path, {"format": "pt"})


def _tokenizer(inputs: Inputs) -> None:
    """The last merges are forgotten, so that some words fall into more tokens."""
    for name in ("model", "base", "other"):
        path = inputs.folder / name / "tokenizer.json"
        made = json.loads(path.read_text())
        del made["model"]["merges"][10:]
        path.write_text(json.dumps(made))


def _ends_sooner(inputs: Inputs) -> None:
    """The model's second word becomes its last."""
    loaded = load(ModelConfig(name=inputs["model"]))
    prompt = loaded.tokenizer(json.loads((inputs.folder / "prompts.jsonl").read_text())["prompt"])["input_ids"]
    inputs.settings("model/generation_config.json", eos_token_id=greedy_tokens(loaded, prompt, 2)[1])


def _other_bases(inputs: Inputs) -> None:
    shutil.rmtree(inputs["bases"])
    shutil.copytree(inputs["other bases"], inputs["bases"])


def _split_elsewhere(row: dict[str, Any]) -> None:
    """The same text, and the same tokens, whose last one before the joint goes a character farther."""
    row |= {"prompt": row["prompt"] + " ", "completion": row["completion"].removeprefix(" ")}


OF_WEIGHTS = ("additive", "retrain", "adapter", "audit", "search")
OF_TEXT = ("additive", "linear", "int8", "audit", "search")


def _config(name: str, **changed: Any) -> Change:
    return lambda inputs: inputs.settings(f"{name}/config.json", **changed)


def _all(file: str, change: Callable[[list[dict[str, Any]]], Any]) -> Change:
    """Of all rows of a file."""
    return lambda inputs: inputs.rows(file, change)


# What is changed in place, how, and families whose results it decides.
CHANGES: dict[str, tuple[Change, tuple[str, ...]]] = {
    "weights of the model": (
        lambda inputs: inputs.weights("model"),
        OF_WEIGHTS,
    ),
    "weights of the base": (lambda inputs: inputs.weights("base"), ("linear", "retrain", "evaluated", "path", "audit")),
    "weights of the classifier": (lambda inputs: inputs.weights("classifier"), ("classifier, auto",)),
    "weights of the classifier's base": (lambda inputs: inputs.weights("classifier base"), ("classifier, auto",)),
    "weights of a second checkpoint": (
        lambda inputs: inputs.weights("other"),
        ("checkpoints", "checkpoints, path", "on the way"),
    ),
    "weights of the adapter": (_adapter, ("adapter",)),
    "activation": (
        _config("model", hidden_act="gelu"),
        ("linear", "retrain", "audit"),
    ),
    "epsilon of the norms": (
        _config("model", rms_norm_eps=0.3),
        ("pca, ekfac", "audit"),
    ),
    "generation": (_ends_sooner, ("prompts",)),
    "tokenizer": (_tokenizer, ("additive", "linear", "search")),
    "earlier bases": (_other_bases, ("earlier bases",)),
    "a document's text": (
        _texts(lambda row: row.update(text=row["text"][4:])),
        ("additive", "linear", "int8", "audit", "search"),
    ),
    "a document's id": (_texts(lambda row: row.update(id="renamed")), ("additive", "path", "search")),
    "a document's source": (_texts(lambda row: row.update(source="s0")), ("additive", "linear", "retrain", "audit")),
    "a document's further field": (_texts(lambda row: row.update(publisher="r")), ("additive", "sampled")),
    "a document's class": (_texts(lambda row: row.update(label="LABEL_1")), ("classifier", "classifier, auto")),
    "order of documents": (_all("corpus.jsonl", lambda rows: rows[::-1]), ("additive", "audit")),
    "a further document": (
        lambda inputs: inputs.rows(
            "corpus.jsonl", lambda rows: [*rows, rows[0] | {"id": "new", "text": "Ships and salt."}]
        ),
        ("additive", "path", "retrain", "audit"),
    ),
    "a query's prompt": (
        _texts(lambda row: row.update(prompt=row["prompt"][4:]), 0, QUERIES),
        ("additive", "linear", "audit"),
    ),
    "a query's completion": (
        _texts(lambda row: row.update(completion=" home"), 0, QUERIES),
        ("additive", "path", "audit"),
    ),
    "where a query is split": (_texts(_split_elsewhere, 0, "split.jsonl"), ("split",)),
    "a query's id": (_texts(lambda row: row.update(id="renamed"), 0, QUERIES), ("additive", "linear")),
    "order of queries": (
        _all("queries.jsonl", lambda rows: rows[::-1]),
        ("additive", "linear", "audit"),
    ),
}
