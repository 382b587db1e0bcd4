"""What checkpoints that a training left tell of who taught what: the flow, against the definition written out."""

import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import dataworth
from dataworth.storage.corpus import CorpusStore
from dataworth.storage.errors import InputError
from dataworth.storage.ref import StoreRef
from dataworth.storage.schema import ALL_QUERIES
from dataworth.tasks.capture.losses import example_losses
from dataworth.tasks.corpus.batches import corpus_batch
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import load
from dataworth.tasks.report.results.folder import read_record
from dataworth.tasks.training.checkpoint_ledger import FLOOR, ledger_of_checkpoints
from dataworth.tasks.training.config import TrainingConfig
from dataworth.tasks.training.small_model import SmallModel, shuffled_batches, train_language_model
from tests.reference.checkpoints import TEXTS

TRAINING = TrainingConfig(epochs=3, batch_tokens=128, learning_rate=6e-3, weight_decay=0.1, seed=4)
SIZE = {"vocabulary": 300, "hidden": 16, "layers": 1, "heads": 2, "intermediate": 24, "positions": 24}
SETTINGS = {
    "corpus": {"max_length": 24},
    "projection": {"rank": 2},
    "curvature": {"kind": "none"},
    "training": TRAINING.model_dump(),
}
QUERIES = [{"id": f"q{n}", "prompt": TEXTS[n][:14], "completion": TEXTS[n][14:28]} for n in range(2)]
ROWS = [{"id": f"d{n}", "source": f"s{n % 3}", "text": text} for n, text in enumerate(TEXTS)]


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def saved(folder, like, weights):
    shutil.copytree(like, folder, ignore=shutil.ignore_patterns("base", "model.safetensors", "*token*"))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a model, its base inside, and two checkpoints, without tokenizers, near the way between them."""
    folder = tmp_path_factory.mktemp("run")
    train_language_model(TEXTS, folder / "model", SmallModel(**SIZE, **TRAINING.model_dump()), lambda *_: None)
    base, model = weights_of(folder / "model" / "base"), weights_of(folder / "model")
    generator = torch.Generator().manual_seed(0)
    for number, share in ((9, 0.3), (100, 0.7)):
        weights = {
            name: torch.lerp(base[name], model[name], share)
            + 0.2 * (model[name] - base[name]) * torch.randn(model[name].shape, generator=generator)
            for name in model
        }
        saved(folder / f"checkpoint-{number}", folder / "model", weights)
    return folder


def valued(run, store, sources=None, rows=ROWS, **options):
    of_model = {"base": str(run / "model" / "base"), "device": "cpu"}
    asked = {"checkpoints": f"{run}/checkpoint-*"} if sources is None else sources
    return dataworth.value(
        str(run / "model"), None, rows, QUERIES, store=store, model=of_model, sources=asked, **SETTINGS, **options
    )


def stores_of(made):
    places = [read_record(str(made.folder))["stores"][name] for name in ("corpus", "queries")]
    refs = [StoreRef(kind="corpus", location=place, fingerprint=place.rsplit("/", 1)[-1]) for place in places]
    return [CorpusStore.open(ref) for ref in refs]


def whole(made):
    return made.sources[made.sources["query_id"] == ALL_QUERIES].set_index("source")["value"]


def test_values_are_those_of_the_definition(run, tmp_path):
    made = valued(run, tmp_path)
    corpus, queries = stores_of(made)
    loaded = load(ModelConfig(name=str(run / "model"), device="cpu"))
    names = [name for name, _ in loaded.model.named_parameters()]
    folders = [run / "model" / "base", run / "checkpoint-9", run / "checkpoint-100", run / "model"]
    states = [torch.cat([weights_of(folder)[name].flatten() for name in names]) for folder in folders]
    sizes = [weight.numel() for weight in loaded.model.parameters()]
    kept = {name: weight.detach().clone() for name, weight in loaded.model.named_parameters()}

    def put(flat):
        with torch.no_grad():
            for weight, part in zip(loaded.model.parameters(), flat.split(sizes), strict=True):
                weight.copy_(part.view(weight.shape))

    def gradient(store, numbers):
        ids, mask, labels = corpus_batch(store, np.asarray(numbers), loaded.device, loaded.reading.pad_token)
        loss = example_losses(loaded.model(input_ids=ids, attention_mask=mask).logits, labels).sum()
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(loaded.model.parameters()))])

    sources = np.array(corpus.column("source").to_pylist())[corpus.windows["document"]]
    expected, gone = np.zeros((3, 2)), np.zeros(2)
    loaded.model.requires_grad_(True)
    try:
        for before, after in pairwise(states):
            put((before + after) / 2)
            way = after - before
            sums = torch.stack([gradient(corpus, np.flatnonzero(sources == name)) for name in ("s0", "s1", "s2")])
            one_epoch = TRAINING.model_copy(update={"epochs": 1})
            batches = shuffled_batches(corpus.windows["n_tokens"].tolist(), one_epoch)
            root = torch.stack([gradient(corpus, batch).square() for batch in batches]).mean(dim=0).sqrt()
            moved = -sums / (root + FLOOR * root.mean())
            together = moved.sum(dim=0)
            factor = (together @ way) / (together @ together)
            for query in range(2):
                asked = gradient(queries, [query])
                expected[:, query] -= (factor * moved @ asked).numpy()
                gone[query] -= float(asked @ way)
    finally:
        with torch.no_grad():
            for name, weight in loaded.model.named_parameters():
                weight.copy_(kept[name])
        loaded.model.requires_grad_(False)
    points = [ModelConfig(name=str(folder), base=str(folders[0]), device="cpu") for folder in folders[1:]]
    windows = np.arange(corpus.n_examples)
    players = np.array([int(name[1]) for name in sources])
    found = ledger_of_checkpoints(points, corpus, windows, players, 3, queries, TRAINING)
    np.testing.assert_allclose(found.values, expected, rtol=2e-3, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(found.accounted.sum(axis=0), gone, rtol=1e-3)
    notes = read_record(str(made.folder))["game"]
    values = whole(made)
    assert notes["estimator"] == "the way through 2 checkpoints"
    for number, name in enumerate(("s0", "s1", "s2")):
        assert values[name] == pytest.approx(notes["scaled by"] * expected[number].sum(), rel=2e-3)
    assert made.account.kind == "share"
    assert values.sum() == pytest.approx(made.account.total, rel=1e-3)
    assert "Unscaled they add up to" in made.account.sentences()[1]


def test_a_split_changes_nothing_and_the_order_is_that_of_the_steps(run, tmp_path):
    one = whole(valued(run, tmp_path))
    split = [{**row, "source": "s1b"} if row["id"] in ("d1", "d7") else row for row in ROWS]
    two = whole(valued(run, tmp_path, rows=split))
    assert two["s1"] + two["s1b"] == pytest.approx(one["s1"], rel=1e-4)
    assert two["s2"] == pytest.approx(one["s2"], rel=1e-4)
    named = [str(run / "checkpoint-9"), str(run / "checkpoint-100")]
    assert whole(valued(run, tmp_path, sources={"checkpoints": named, "game": "ledger"})).equals(one)
    back = whole(valued(run, tmp_path, sources={"checkpoints": named[::-1]}))
    assert not np.allclose(back, one, rtol=1e-3)


def test_other_weights_in_the_same_folder_are_seen(run, tmp_path):
    place = tmp_path / "run"
    shutil.copytree(run, place)
    before = whole(valued(place, tmp_path / "store"))
    other = {name: weight * 1.01 for name, weight in weights_of(place / "checkpoint-9").items()}
    save_file(other, place / "checkpoint-9" / "model.safetensors", {"format": "pt"})
    assert not np.allclose(whole(valued(place, tmp_path / "store")), before, rtol=1e-6)


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ({"checkpoints": ["x"], "game": "additive"}, "are of the game ledger"),
        ({"checkpoints": ["x"], "ledger_every": 2}, "no steps are made"),
        ({"checkpoints": ["x"], "projection_seeds": 2}, "without a projection"),
        ({"checkpoints": ["nowhere/there"]}, "nowhere/there"),
    ],
)
def test_what_cannot_be_a_way_is_refused(run, tmp_path, sources, said):
    with pytest.raises((InputError, ValueError), match=said):
        valued(run, tmp_path, sources=sources)


def test_a_checkpoint_of_another_model_is_refused(run, tmp_path):
    wide = SmallModel(**{**SIZE, "hidden": 32}, **TRAINING.model_dump())
    train_language_model(TEXTS, tmp_path / "wide", wide, lambda *_: None)
    with pytest.raises(InputError, match="has another shape than in the model"):
        valued(run, tmp_path / "store", sources={"checkpoints": [str(tmp_path / "wide")]})


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # peft asks transformers by the old name
def test_adapters_on_the_way(run, tmp_path):
    """Of adapters the matrices are moved, from where they add nothing."""
    base = AutoModelForCausalLM.from_pretrained(run / "model" / "base")
    tokenizer = AutoTokenizer.from_pretrained(run / "model" / "base")
    torch.manual_seed(0)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    stepping = torch.optim.AdamW([weight for weight in adapted.parameters() if weight.requires_grad], lr=1e-2)
    ids = [tokenizer(text, return_tensors="pt")["input_ids"][:, :24] for text in TEXTS]
    for step in range(1, 31):
        stepping.zero_grad()
        sum(adapted(input_ids=each, labels=each).loss for each in ids).backward()
        stepping.step()
        if step in (10, 20, 30):
            adapted.save_pretrained(tmp_path / f"checkpoint-{step}")
            tokenizer.save_pretrained(tmp_path / f"checkpoint-{step}")
    made = dataworth.value(
        str(tmp_path / "checkpoint-30"),
        None,
        ROWS,
        QUERIES,
        store=tmp_path / "store",
        model={"device": "cpu"},
        sources={"checkpoints": [str(tmp_path / "checkpoint-10"), str(tmp_path / "checkpoint-20")], "fallback": False},
        **SETTINGS,
    )
    assert "scaled by" in read_record(str(made.folder))["game"]
    assert made.account.kind == "share"
    assert whole(made).sum() == pytest.approx(made.account.total, rel=1e-3)
    corpus, queries = stores_of(made)
    folders = [tmp_path / f"checkpoint-{step}" for step in (10, 20, 30)]
    points = [ModelConfig(name=str(folder), base=str(run / "model" / "base"), device="cpu") for folder in folders]
    windows = np.arange(corpus.n_examples)
    found = ledger_of_checkpoints(points, corpus, windows, windows % 3, 3, queries, TRAINING)
    for number, point in enumerate(points, 1):
        np.testing.assert_allclose(found.measured[number], query_losses(load(point), queries), rtol=1e-5)
    np.testing.assert_allclose(found.measured[0], query_losses(load(points[0], 1.0), queries), rtol=1e-5)
