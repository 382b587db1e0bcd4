"""Gradients from a training loop and from the Trainer, against autograd on the weights of one example at a time."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from dataworth.storage.errors import InputError, StoreBusyError, StoreIncompleteError
from dataworth.tasks.capture.hooks import CaptureError
from dataworth.tasks.model.layers import tracked_layers
from dataworth.tasks.projection.config import ProjectionConfig
from dataworth.training import IndexCallback, Indexing
from tests.reference.dense import dense_gradients

LENGTHS = (9, 4, 13, 4, 2)
WHOLE = ProjectionConfig(kind="identity")


def rows_of_data():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(2, 250, (length,), generator=generator) for length in LENGTHS]


def padded(rows):
    width = max(map(len, rows))
    batch = {"input_ids": torch.zeros(len(rows), width, dtype=torch.long)}
    batch["attention_mask"] = torch.zeros_like(batch["input_ids"])
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    for number, ids in enumerate(rows):
        for name, values in (("input_ids", ids), ("attention_mask", 1), ("labels", ids)):
            batch[name][number, : len(ids)] = values
    return batch


def dense_rows(model, rows):
    modules = [layer.module for layer in tracked_layers(model)]
    trained = [parameter.requires_grad for parameter in model.parameters()]
    found = dense_gradients(model.requires_grad_(False), modules, [(ids, ids) for ids in rows])
    for parameter, flag in zip(model.parameters(), trained, strict=True):
        parameter.requires_grad_(flag)
    return torch.stack([torch.cat([gradient.flatten() for gradient in item]) for item in found]).numpy()


def close(found, expected, tolerance=1e-5):
    return np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


@pytest.fixture
def model(checkpoints):
    return AutoModelForCausalLM.from_pretrained(checkpoints["llama"])


def test_a_training_loop_leaves_the_gradients_at_the_weights_each_example_met(tmp_path, model):
    data, expected = rows_of_data(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Indexing(model, tmp_path, WHOLE, dtype="float32") as index:
        for first in (0, 2):
            batch = padded(data[first : first + 2])
            optimizer.zero_grad()
            model(**batch).loss.backward()
            index.add([f"e{first}", f"e{first + 1}"], mean_over=batch["labels"])
            expected.append([gradient.grad.clone() for gradient in model.parameters()])
            optimizer.step()
    assert len(expected) == 2
    before = AutoModelForCausalLM.from_pretrained(model.config._name_or_path)
    assert close(index.rows(["e1", "e0"]), dense_rows(before, [data[1], data[0]]))
    with pytest.raises(StoreIncompleteError, match="'e9' is not stored in .*: add it inside"):
        index.rows(["e9"])
    # Weight gradients are the loop's own: what the loop without capture would have got.
    batch = padded(data[:2])
    before(**batch).loss.backward()
    torch.testing.assert_close(expected[0], [parameter.grad for parameter in before.parameters()])


@pytest.mark.parametrize("by", ["loop", "trainer"])
@pytest.mark.filterwarnings("ignore")
def test_all_parameters_of_a_model_whose_head_is_its_table(tmp_path, checkpoints, by):
    """Its table of positions is looked up once for all examples of a batch."""
    model = AutoModelForCausalLM.from_pretrained(checkpoints["gpt2"]).eval()
    data = rows_of_data()
    names = [str(number) for number in range(len(data))]
    everything = {"parameters": "all", "dtype": "float32"}
    if by == "loop":
        with Indexing(model, tmp_path / "store", WHOLE, **everything) as index:
            batch = padded(data)
            model(**batch).loss.backward()
            index.add(names, mean_over=batch["labels"])
    else:
        callback = IndexCallback(tmp_path / "store", WHOLE, **everything)
        trainer(model, [{"input_ids": ids} for ids in data], callback, tmp_path).evaluate()
        (index,) = callback.stores
    layers = tracked_layers(model, parameters="all")
    assert sum(layer.n_inputs * layer.n_outputs for layer in layers) == sum(p.numel() for p in model.parameters())
    for row, ids in zip(index.rows(names), data, strict=True):
        model.zero_grad()
        model(input_ids=ids[None], labels=ids[None]).loss.backward()
        tensors = [[parameter.grad for parameter in layer.parameters.values()] for layer in layers]
        parts = [layer.matrix(own).flatten() for layer, own in zip(layers, tensors, strict=True)]
        assert close(row, torch.cat(parts).numpy() * (len(ids) - 1))


def test_the_store_is_found_again_grows_and_keeps_whole_rows_of_a_broken_loop(tmp_path, model):
    model.requires_grad_(False)
    data = rows_of_data()

    def run(names, broken=False):
        with Indexing(model, tmp_path, ProjectionConfig(rank=4), dtype="float32") as index:
            for name in names:
                batch = padded([data[int(name)]])
                model(**batch).loss.backward()
                index.add([name], mean_over=batch["labels"])
            if broken:
                raise KeyboardInterrupt
        return index

    with pytest.raises(KeyboardInterrupt):
        run("01", broken=True)
    index = run("1234")
    rows = index.rows(list("01234"))
    assert rows.shape[0] == 5
    again = run("43210")
    assert again.store.fingerprint == index.store.fingerprint
    np.testing.assert_array_equal(again.rows(list("01234")), rows)
    assert sum(segment.n_rows for segment in index.store.segments()) == 5
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    assert run("0").store.fingerprint != index.store.fingerprint


def test_wrong_uses_are_told(tmp_path, model):
    batch = padded(rows_of_data())
    with Indexing(model, tmp_path) as index:
        with pytest.raises(CaptureError, match=r"call loss.backward\(\)"):
            index.add(["a"])
        model(**batch).loss.backward()
        with pytest.raises(ValueError, match="5 examples were back-propagated, got 1 ids"):
            index.add(["a"])
        (model(**batch).loss * 1e30).backward()
        with pytest.raises(InputError, match="of 'a' does not fit float16: pass --gradients.dtype bfloat16"):
            index.add(list("abcde"))
        with pytest.raises(StoreBusyError), Indexing(model, tmp_path):
            pass
    with pytest.raises(InputError, match="pca bases are fitted on a corpus"):
        Indexing(model, tmp_path, ProjectionConfig(kind="pca"))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_is_captured_like_the_plain_one(tmp_path, model):
    model.requires_grad_(False).eval()
    batch, names = padded(rows_of_data()), list("abcde")
    compiled = torch.compile(model)
    compiled(**batch)
    with Indexing(model, tmp_path, ProjectionConfig(rank=4), dtype="float32") as index:
        for _ in range(2):
            compiled(**batch).loss.backward()
            index.add(names, mean_over=batch["labels"])
    with Indexing(model, tmp_path / "plain", ProjectionConfig(rank=4), dtype="float32") as plain:
        model(**batch).loss.backward()
        plain.add(names, mean_over=batch["labels"])
    assert close(index.rows(names), plain.rows(names))
    assert compiled(**batch).loss.item() == pytest.approx(model(**batch).loss.item(), rel=1e-5)


def trainer(model, data, callback, folder):
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder), per_device_eval_batch_size=2, report_to=[], disable_tqdm=True, use_cpu=True
    )
    return Trainer(model=model, args=arguments, eval_dataset=data, callbacks=[callback], data_collator=collated)


def collated(rows):
    if "label" in rows[0]:
        return padded([row["input_ids"] for row in rows]) | {"labels": torch.tensor([row["label"] for row in rows])}
    return padded([row["input_ids"] for row in rows])


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_indexes_its_evaluation_set(tmp_path, model):
    data = rows_of_data()
    callback = IndexCallback(tmp_path / "store", WHOLE, dtype="float32")
    run = trainer(model.train(), [{"input_ids": ids} for ids in data], callback, tmp_path)
    run.evaluate()
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    index = callback.stores[-1]
    assert close(index.rows([str(number) for number in range(5)]), dense_rows(model.eval(), data))
    assert sorted(index.store.segments()[0].column("n_tokens").tolist()) == sorted(LENGTHS)
    run.evaluate()
    assert callback.stores[1].store.fingerprint == index.store.fingerprint
    assert sum(segment.n_rows for segment in index.store.segments()) == 5


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_indexes_a_classifier(tmp_path, checkpoints):
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints["distilbert classifier"])
    data = [{"input_ids": ids, "label": number % 3} for number, ids in enumerate(rows_of_data())]
    callback = IndexCallback(tmp_path / "store", WHOLE, dtype="float32")
    trainer(model, data, callback, tmp_path).evaluate()
    found = callback.stores[-1].rows(["0", "4"])
    model.eval()
    modules = [layer.module for layer in tracked_layers(model)]
    for row, number in zip(found, (0, 4), strict=True):
        model.zero_grad()
        model(input_ids=data[number]["input_ids"][None], labels=torch.tensor([data[number]["label"]])).loss.backward()
        expected = [torch.cat([m.weight.grad, m.bias.grad[:, None]], dim=1).flatten() for m in modules]
        assert close(row, torch.cat(expected).numpy())


@pytest.mark.filterwarnings("ignore")
def test_every_evaluation_set_has_a_store_of_its_own(tmp_path, model):
    """Two named sets, then one of them corrected under the same weights and folder."""
    first, second = rows_of_data(), [ids.flip(0) for ids in rows_of_data()]
    callback = IndexCallback(tmp_path / "store", WHOLE, dtype="float32")
    sets = {name: [{"input_ids": ids} for ids in data] for name, data in (("one", first), ("two", second))}
    trainer(model, sets, callback, tmp_path).evaluate()
    names = [str(number) for number in range(len(first))]
    assert close(callback.stores[0].rows(names), dense_rows(model.eval(), first))
    assert close(callback.stores[1].rows(names), dense_rows(model.eval(), second))
    corrected = [second[0], *first[1:]]
    trainer(model, [{"input_ids": ids} for ids in corrected], callback, tmp_path).evaluate()
    assert close(callback.stores[2].rows(names), dense_rows(model.eval(), corrected))
    assert len({index.store.fingerprint for index in callback.stores}) == 3


def test_an_id_is_bound_to_its_inputs(tmp_path, model):
    data = rows_of_data()
    batch = padded(data[:2])

    def index_as(ids, inputs, batch=batch):
        with Indexing(model, tmp_path / "store", WHOLE, dtype="float32") as index:
            model(**batch).loss.backward()
            n_tokens = batch["attention_mask"].sum(dim=1)
            index.add(ids, mean_over=batch["labels"], inputs=inputs, n_tokens=n_tokens)
        return index

    index = index_as(["a", "b"], batch["input_ids"])
    before = index.rows(["a", "b"])
    wider = padded([data[0], data[1], data[2]])
    index_as(["a", "b", "c"], wider["input_ids"], wider)  # the same two, with more padding
    with pytest.raises(InputError, match="'t' is stored already, with other inputs"):
        index_as(["t", "t"], ["The river", "The sea"])
    with pytest.raises(InputError, match="'b' is stored already, with other inputs"):
        index_as(["a", "b"], torch.stack([batch["input_ids"][0], batch["input_ids"][0]]))
    with pytest.raises(InputError, match="'d' is stored already, with other inputs"):
        index_as(["d", "d"], batch["input_ids"])  # twice in one batch
    with pytest.raises(ValueError, match="2 examples need as many inputs, got 1"):
        index_as(["d", "e"], batch["input_ids"][:1])
    assert close(index.rows(["a", "b"]), before)
    index_as(["a", "b"], None)  # without inputs nothing is known of what they were
    assert close(index.rows(["b", "a"]), before[::-1])


def test_examples_along_the_second_axis_are_refused(tmp_path):
    """torch's default for attention: with as many examples as tokens nothing else would tell."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
    square, other = torch.randn(4, 4, 8), torch.randn(3, 4, 8)

    def index_as(examples, ids, store):
        with Indexing(layer, tmp_path / store, WHOLE, include=["linear*"]) as index:
            layer(examples).sum().backward()
            index.add(ids)

    with pytest.raises(CaptureError, match="either axis may be the examples', since self_attn has batch_first=False"):
        index_as(square, list("abcd"), "square")
    with pytest.raises(ValueError, match=r"3 examples were back-propagated, got 4 ids; the first axis .*batch_first"):
        index_as(other, list("abcd"), "other")
    right = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    aims = torch.randn(4, 4, 8)  # the squares of a normalised output add up to the same, whatever the weights
    with Indexing(right, tmp_path / "right", WHOLE, include=["linear*"], dtype="float32") as index:
        ((right(square) - aims) ** 2).sum().backward()
        index.add(list("abcd"))
    for name, example, aim in zip("abcd", square, aims, strict=True):
        right.zero_grad()
        ((right(example[None]) - aim) ** 2).sum().backward()
        parts = [
            torch.cat([m.weight.grad, m.bias.grad[:, None]], dim=1).flatten() for m in (right.linear1, right.linear2)
        ]
        assert close(index.rows([name])[0], torch.cat(parts).numpy())
