"""What a run may name: every field that names something is held to its list, through every way out of a folder."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import get_args
from uuid import uuid4

import pytest
from prefect.context import FlowRunContext

import dataworth.config
from dataworth.config import AuditRunConfig, ValueConfig
from dataworth.deployed import audit_valuation, demo, fit_curvature, index_corpus, value_corpus
from dataworth.lifecycle.permissions import ADDRESSES, INPUTS, PROBLEMS, RESULTS, check_permitted, named_by
from dataworth.storage.errors import InputError
from dataworth.tasks.configuration import Configuration, Names

# Fields of text that name nothing outside the run: of rows and columns, patterns, words shown, kinds of device.
NAMES_NOTHING = {
    *("CorpusConfig.id", "CorpusConfig.source", "CorpusConfig.text", "CorpusConfig.label", "CorpusConfig.fields"),
    *("CorpusConfig.messages", "CorpusConfig.prompt", "CorpusConfig.completion"),
    *("ModelsConfig.device", "ModelsConfig.include", "ModelsConfig.exclude"),
    *("ProjectionConfig.ranks", "SourcesConfig.by", "AuditConfig.methods", "AuditConfig.removal_methods"),
    *("ScoringConfig.layers", "ScoringConfig.sources", "ScoringConfig.without_sources"),
    *("TrackingConfig.experiment", "TrackingConfig.series", "SearchConfig.query", "SearchConfig.completion"),
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Folders `inputs` and `results`, which alone are permitted."""
    for name in ("inputs", "results", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv(INPUTS, f"{tmp_path}/inputs; s3://bucket/in;hf:permitted/*")
    monkeypatch.setenv(RESULTS, f"{tmp_path}/results;s3://bucket/out")
    monkeypatch.setenv(PROBLEMS, "ours.problems:one")
    monkeypatch.setenv(ADDRESSES, "tcp://scheduler:8786;http://mlflow:5000/")
    for name in ("DATAWORTH_DASK", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def whole(root: Path) -> dict[str, dict]:
    """Configurations in which every field that names something names what is permitted."""
    inputs, results = str(root / "inputs"), str(root / "results")
    shared = {
        "model": {"name": [f"{inputs}/model"], "base": f"{inputs}/base", "tokenizer": f"{inputs}/t"},
        "corpus": {
            "files": [f"{inputs}/a.jsonl", "hf:permitted/documents:train"],
            "chat_template": f"{inputs}/chat.jinja",
        },
        "queries": {"file": f"{inputs}/queries.jsonl"},
        "candidates": {"files": [f"{inputs}/new.jsonl"]},
        "sources": {"checkpoints": [f"{inputs}/checkpoint-1", "permitted/model"]},
        "projection": {"bases": f"{inputs}/bases"},
        "store": f"{results}/store",
        "results": f"{results}/out",
        "cluster": {
            "address": "tcp://scheduler:8786",
            **{name: f"{inputs}/{name}.pem" for name in ("tls_ca", "tls_certificate", "tls_key")},
        },
        "tracking": {"uri": "http://mlflow:5000"},
    }
    named = {name: shared[name] for name in ("projection", "store", "results", "cluster", "tracking")}
    return {"value": shared, "audit": {**named, "audit": {"problem": "ours.problems:one"}}}


def configurations() -> set[type[Configuration]]:
    """All of them, and those they are made of."""
    found: set[type[Configuration]] = set()
    waiting = [getattr(dataworth.config, name) for name in dataworth.config.__all__]
    while waiting:
        kind = waiting.pop()
        if isinstance(kind, type) and issubclass(kind, Configuration) and kind not in found:
            found.add(kind)
            for field in kind.model_fields.values():
                waiting += [field.annotation, *get_args(field.annotation)]
        else:
            waiting += get_args(kind)
    return found


def holds_text(annotation) -> bool:
    return annotation is str or any(
        holds_text(part) for part in get_args(annotation) if isinstance(part, type) or get_args(part)
    )


def test_every_field_of_text_is_marked_or_names_nothing():
    unmarked, marked = set(), set()
    for kind in configurations():
        for name, field in kind.model_fields.items():
            of_names = [mark for mark in field.metadata if isinstance(mark, Names)]
            if of_names:
                marked.add(f"{kind.__name__}.{name}")
            elif holds_text(field.annotation):
                unmarked.add(f"{kind.__name__}.{name}")
    assert unmarked == NAMES_NOTHING
    assert {"ClusterConfig.address", "CorpusConfig.files", "AuditConfig.problem", "ModelsConfig.name"} <= marked


def test_a_new_field_of_text_would_be_seen():
    class Later(Configuration):
        paths: list[str]
        path: str | None = None

    assert all(holds_text(field.annotation) for field in Later.model_fields.values())


def replaced(config: dict, field: str, value: str) -> dict:
    group, _, name = field.rpartition(".")
    within = config[group] if group else config
    changed = {**within, name: [value] if isinstance(within[name], list) else value}
    return {**config, group: changed} if group else changed


def fields_that_name() -> list[tuple[str, str]]:
    found = []
    for kind, config in (("value", ValueConfig), ("audit", AuditRunConfig)):
        for field, _, _ in named_by(config.model_validate(whole(Path("/x"))[kind])):
            if (kind, field) not in found:
                found.append((kind, field))
    return found


@pytest.mark.parametrize(("kind", "field"), fields_that_name())
def test_every_field_that_names_something_is_held_to_its_list(root, kind, field):
    config, model = whole(root)[kind], {"value": ValueConfig, "audit": AuditRunConfig}[kind]
    check_permitted(model.model_validate(config))
    other = {"audit.problem": "uploaded:problem", "cluster.address": "tcp://other:1", "tracking.uri": "http://other"}
    value = other.get(field, str(root / "elsewhere" / "file"))
    with pytest.raises(InputError, match=f"^{field} {value}: not permitted here; DATAWORTH_[A-Z]+ permits "):
        check_permitted(model.model_validate(replaced(config, field, value)))


def test_the_two_configurations_name_all_that_any_does():
    kinds = {ValueConfig, AuditRunConfig}
    of_two = {field for _, field in fields_that_name()}
    for kind in configurations() - kinds:
        for name, field in kind.model_fields.items():
            if any(isinstance(mark, Names) for mark in field.metadata):
                assert any(each == name or each.endswith(f".{name}") for each in of_two), f"{kind.__name__}.{name}"


def refused(root, field, value):
    try:
        check_permitted(ValueConfig.model_validate(replaced(whole(root)["value"], field, value)))
    except InputError as error:
        return str(error)
    return None


def test_no_way_leads_out_of_the_inputs(root, monkeypatch):
    inputs = root / "inputs"
    (inputs / "out").symlink_to(root / "elsewhere")
    (inputs / "in").symlink_to(inputs)
    (inputs / "folder" / "deep").mkdir(parents=True)
    (inputs / "b1.jsonl").touch()
    (root / "elsewhere" / "secret").touch()
    (inputs / "folder" / "deep" / "link.jsonl").symlink_to("/etc/passwd")
    monkeypatch.chdir(inputs)
    for value in (
        *("/etc/passwd", "/", f"{inputs}/../elsewhere/x", f"{inputs}-beside/x", "../elsewhere/x", "out/x"),
        *(f"{inputs}/out", f"{inputs}/out/x", f"{inputs}/in/../../elsewhere", "s3://bucket/input", "s3://other/in/x"),
        *("hf:other/documents", "hf:/etc", "hf:../elsewhere", f"hf:{root}/elsewhere:train"),
        *(f"hf:{inputs}", "hf:permitted/../x", "news=hf:other/documents", "news=/etc/passwd", f"news={inputs}/out/x"),
        *(
            "/etc/pass*",
            f"{inputs}/out/*",
            f"{inputs}/*/../../elsewhere/*",
            f"news={inputs}/../elsewhere/*",
            "/e*/passwd",
        ),
    ):
        said = refused(root, "corpus.files", value)
        assert said is not None, value
        assert said.startswith("corpus.files ")
    within = refused(root, "corpus.files", f"{inputs}/folder")
    assert within == (
        f"corpus.files {inputs}/folder, in which the link {inputs}/folder/deep/link.jsonl: not permitted here; "
        f"{INPUTS} permits {inputs}, s3://bucket/in, hf:permitted/*"
    )
    for value in (
        *(f"{inputs}/x", "x", "in/x", f"{inputs}/in/in/x", f"{inputs}/folder/../x", f"{root}/results/x"),
        *("s3://bucket/in", "s3://bucket/in/x", "s3://bucket/out/x", "hf:permitted/documents"),
        *(f"news={inputs}/x", "news=hf:permitted/documents:one:train", "b*.jsonl", f"news={inputs}/b?.jsonl"),
    ):
        assert refused(root, "corpus.files", value) is None, value


def test_a_pattern_tells_nothing_of_what_lies_elsewhere(root):
    inputs = root / "inputs"
    (inputs / "folder").mkdir()
    (inputs / "away").symlink_to(root / "elsewhere")
    (root / "elsewhere" / "secret.jsonl").touch()
    for fits, fits_not in (
        (f"{inputs}/*/../../elsewhere/s*", f"{inputs}/*/../../elsewhere/z*"),
        (f"{inputs}/*/s*.jsonl", f"{inputs}/*/z*.jsonl"),
        ("/etc/pass*", "/etc/nothing*"),
    ):
        said = [refused(root, "corpus.files", value) for value in (fits, fits_not)]
        assert said[0].replace(fits, "PATTERN") == said[1].replace(fits_not, "PATTERN")
        assert "secret.jsonl" not in said[0]


def test_results_go_nowhere_else(root):
    (root / "results" / "away").symlink_to(root / "elsewhere")
    for value in (f"{root}/inputs/x", f"{root}/results/../inputs", f"{root}/results/away/new", "s3://bucket/in/x", "x"):
        assert refused(root, "results", value) is not None, value
        assert refused(root, "store", value) is not None, value
    for value in (f"{root}/results", f"{root}/results/new/deep", "s3://bucket/out/x"):
        assert refused(root, "store", value) is None, value


def test_models_of_the_hub_and_what_adapters_are_put_on(root):
    for value in ("other/model", "gpt2", "/etc", "permitted/../x", "../permitted/model"):
        assert refused(root, "model.name", value) is not None, value
    assert refused(root, "model.name", "permitted/model") is None
    adapter = root / "inputs" / "adapter"
    adapter.mkdir()
    for base, permitted in ((root / "elsewhere", False), (root / "inputs" / "base", True), (adapter, True)):
        (adapter / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{base}"}}')
        said = refused(root, "model.name", str(adapter))
        assert (said is None) is permitted
        assert permitted or said.startswith(f"model.name {adapter}, adapters of {base}: not permitted here")


def test_addresses_of_the_process_itself_are_permitted(root, monkeypatch):
    assert refused(root, "tracking.uri", "sqlite:////tmp/mlflow.db") is not None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////tmp/mlflow.db")
    assert refused(root, "tracking.uri", "sqlite:////tmp/mlflow.db") is None


def test_an_empty_list_permits_nothing_and_none_everything(root, monkeypatch):
    monkeypatch.setenv(INPUTS, "")
    said = refused(root, "queries.file", f"{root}/inputs/x")
    assert said is not None
    assert said.endswith(f"{INPUTS} permits nothing")
    for name in (INPUTS, RESULTS, PROBLEMS, ADDRESSES):
        monkeypatch.delenv(name)
    for field, value in (("corpus.files", "/etc/passwd"), ("results", "/"), ("cluster.address", "tcp://any:1")):
        assert refused(root, field, value) is None


def test_a_root_that_is_no_absolute_folder_is_refused(root, monkeypatch):
    monkeypatch.setenv(INPUTS, "inputs")
    said = refused(root, "queries.file", f"{root}/inputs/x")
    assert said == f"inputs: expected an absolute folder or s3://bucket/prefix in {INPUTS} and {RESULTS}"


@pytest.fixture
def run(monkeypatch):
    """Makes the run under way one of a deployment, or of a flow that called it."""

    def begin(deployment_id=None, parent_task_run_id=None):
        context = SimpleNamespace(
            flow_run=SimpleNamespace(deployment_id=deployment_id, parent_task_run_id=parent_task_run_id)
        )
        monkeypatch.setattr(FlowRunContext, "get", lambda: context)

    return begin


def test_a_run_of_a_deployment_calls_no_code_that_is_not_listed(monkeypatch, run):
    monkeypatch.delenv(PROBLEMS, raising=False)
    config = AuditRunConfig.model_validate({"results": "x", "audit": {"problem": "uploaded:problem"}})
    run()
    check_permitted(config)  # one's own terminal
    run(deployment_id=uuid4())
    with pytest.raises(
        InputError, match="^audit.problem uploaded:problem: .*; DATAWORTH_PROBLEMS permits digits, demo$"
    ):
        check_permitted(config)
    for problem in ("digits", "demo"):
        check_permitted(AuditRunConfig.model_validate({"results": "x", "audit": {"problem": problem}}))
    monkeypatch.setenv(PROBLEMS, "other:one;uploaded:problem")
    check_permitted(config)


def test_stores_of_a_calling_flow_are_not_given_in_a_form(root, run):
    config = ValueConfig.model_validate(whole(root)["value"])
    run(deployment_id=uuid4())
    check_permitted(config)
    with pytest.raises(InputError, match="^prepared: is for flows that call this one"):
        check_permitted(config, object())
    run(parent_task_run_id=uuid4())
    check_permitted(config, object())


@pytest.mark.parametrize("deployed", [audit_valuation, demo, fit_curvature, index_corpus, value_corpus])
def test_every_flow_asks_before_it_begins(root, deployed):
    """Each by the folder that it would write."""
    field = "store" if deployed in (fit_curvature, index_corpus) else "results"
    made = root / "elsewhere" / "made"
    kind = deployed.fn.__annotations__["config"]
    given = whole(root)["audit" if kind is AuditRunConfig else "value"]
    given = {name: value for name, value in given.items() if name in kind.model_fields}
    with pytest.raises(InputError, match=f"^{field} .*: not permitted here; DATAWORTH_RESULTS permits "):
        deployed.fn(kind.model_validate({**given, field: str(made)}))
    assert not os.path.lexists(made)
