"""The ledger of a training by the Trainer: the same training, and its parts add up to what was measured."""

import copy

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Trainer, TrainingArguments

from dataworth.storage.errors import InputError
from dataworth.training import LedgerCallback

SOURCES = ("news", "books", "letters")


def examples(n=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(n):
        ids = torch.randint(2, 250, (6 + number % 5,), generator=generator).tolist()
        found.append({"input_ids": ids, "labels": ids, "source": SOURCES[number % 3]})
    return found


def padded(batch):
    width = max(len(one["input_ids"]) for one in batch)
    assert all("source" not in one for one in batch)
    rows = {
        "input_ids": [one["input_ids"] + [0] * (width - len(one["input_ids"])) for one in batch],
        "attention_mask": [[1] * len(one["input_ids"]) + [0] * (width - len(one["input_ids"])) for one in batch],
        "labels": [one["labels"] + [-100] * (width - len(one["labels"])) for one in batch],
    }
    return {name: torch.tensor(each) for name, each in rows.items()}


def trainer_of(model, folder, callbacks=(), data=None, evaluated=None, **settings):
    """Two epochs of six examples a step, as three batches of two that are accumulated, or another number."""
    options = {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "num_train_epochs": 2,
        "learning_rate": 3e-3, "weight_decay": 0.1, "max_grad_norm": 0.5, "report_to": [], "save_strategy": "no",
        "seed": 3, "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no",
    }  # fmt: skip
    arguments = TrainingArguments(output_dir=str(folder), **(options | settings))
    return Trainer(
        model=model, args=arguments, train_dataset=data or examples(), eval_dataset=evaluated, data_collator=padded,
        callbacks=[*callbacks],
    )  # fmt: skip


def loaded(checkpoints, name="llama"):
    return AutoModelForCausalLM.from_pretrained(checkpoints[name])


def watched(model, folder, every=1, data=None, queries=None, **settings):
    ledger = LedgerCallback(queries or examples(4, seed=9), every=every)
    trainer = trainer_of(model, folder, [ledger], data, **settings)
    ledger.watch(trainer)
    return ledger, trainer


@pytest.mark.parametrize(
    "settings",
    [{}, {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 6}, {"optim": "sgd", "learning_rate": 0.1}],
)
def test_the_training_is_the_same_and_what_is_credited_is_what_was_measured(checkpoints, tmp_path, settings):
    plain, model = loaded(checkpoints), loaded(checkpoints)
    without = [{name: one[name] for name in ("input_ids", "labels")} for one in examples()]
    trainer_of(plain, tmp_path / "plain", data=without, **settings).train()
    ledger, trainer = watched(model, tmp_path / "watched", **settings)
    trainer.train()
    for one, two in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=2e-5)
    credits = ledger.credits()
    assert set(credits.players) == set(SOURCES)
    assert len(credits.accounted) == 4
    assert np.abs(credits.fall).sum() > 0.1
    falls = credits.measured[:-1] - credits.measured[1:]
    np.testing.assert_allclose(credits.accounted, falls, atol=0.02 * np.abs(falls).max())
    np.testing.assert_array_equal(credits.others, 0)
    table = credits.table(["q0", "q1", "q2", "q3"])
    whole = table[table["query_id"] == "*"].set_index("source")["nats"]
    assert whole.sum() == pytest.approx(credits.fall.sum())
    assert set(whole.index) == {*SOURCES, "(decay)", "(others)", "(not accounted for)"}


def test_who_is_split_in_two_gets_the_same(checkpoints, tmp_path):
    whole, trainer = watched(loaded(checkpoints), tmp_path)
    trainer.train()
    halves = [
        {**one, "source": "news again" if one["source"] == "news" and number % 2 else one["source"]}
        for number, one in enumerate(examples())
    ]
    split, trainer = watched(loaded(checkpoints), tmp_path, data=halves)
    trainer.train()
    one, two = (dict(zip(each.credits().players, each.credits().values, strict=True)) for each in (whole, split))
    scale = np.abs(whole.credits().values).max()
    np.testing.assert_allclose(two["news"] + two["news again"], one["news"], atol=1e-3 * scale)
    np.testing.assert_allclose(two["books"], one["books"], atol=1e-3 * scale)


def test_a_resumed_training_goes_on_with_its_books(checkpoints, tmp_path):
    ledger, trainer = watched(loaded(checkpoints), tmp_path / "whole", every=2)
    trainer.train()
    folder = tmp_path / "stopped"
    saved = {"save_strategy": "steps", "save_steps": 3}
    _, trainer = watched(loaded(checkpoints), folder, every=2, **saved)
    trainer.train()
    again, trainer = watched(loaded(checkpoints), folder, every=2, **saved)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    one, two = (dict(zip(each.credits().players, each.credits().values, strict=True)) for each in (ledger, again))
    for name in SOURCES:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-3, atol=1e-4)
    (folder / "checkpoint-3" / "ledger.pt").unlink()
    _, trainer = watched(loaded(checkpoints), folder, **saved)
    with pytest.raises(InputError, match="not there, and without the books of the steps before"):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3"))


def test_a_classifier(checkpoints, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints["distilbert classifier"])
    data = [{**one, "labels": number % 2} for number, one in enumerate(examples())]
    queries = [{**one, "labels": number % 2} for number, one in enumerate(examples(3, seed=9))]

    def collated(batch):
        return {
            **padded([{**one, "labels": []} for one in batch]),
            "labels": torch.tensor([b["labels"] for b in batch]),
        }

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # its draws differ where a batch is split
    plain, ledger = copy.deepcopy(model), LedgerCallback(queries)
    without = [{name: one[name] for name in ("input_ids", "labels")} for one in data]
    for trained, callbacks, given in ((plain, [], without), (model, [ledger], data)):
        trainer = trainer_of(trained, tmp_path, callbacks, given, learning_rate=1e-4)
        trainer.data_collator = collated
        if callbacks:
            ledger.watch(trainer)
        trainer.train()
    for one, two in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=2e-5)
    credits = ledger.credits()
    falls = credits.measured[:-1] - credits.measured[1:]
    np.testing.assert_allclose(credits.accounted, falls, atol=0.02 * np.abs(falls).max())


def test_workers_that_collate_and_evaluations_without_sources(checkpoints, tmp_path):
    here, trainer = watched(loaded(checkpoints), tmp_path)
    trainer.train()
    data = [{name: one[name] for name in ("input_ids", "labels")} for one in examples(4, seed=5)]
    settings = {"dataloader_num_workers": 2, "eval_strategy": "epoch", "evaluated": data}
    there, trainer = watched(loaded(checkpoints), tmp_path, **settings)
    trainer.train()
    assert "eval_loss" in trainer.evaluate()
    np.testing.assert_allclose(there.credits().values, here.credits().values, rtol=1e-3, atol=1e-5)


def test_the_last_interval_ends_where_training_does(checkpoints, tmp_path):
    data = [{name: one[name] for name in ("input_ids", "labels")} for one in examples(4, seed=5)]
    settings = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1}
    model = loaded(checkpoints)
    settings |= {"save_steps": 1, "learning_rate": 1e-2, "evaluated": data}
    ledger, trainer = watched(model, tmp_path, every=3, **settings)
    trainer.train()
    credits = ledger.credits()
    falls = credits.measured[:-1] - credits.measured[1:]
    assert trainer.state.best_global_step < 4  # whose weights are loaded in the end
    assert len(falls) == 2
    assert credits.accounted[-1].sum() == pytest.approx(falls[-1].sum(), rel=0.1)


def test_a_training_after_one_that_failed_has_books_of_its_own(checkpoints, tmp_path):
    ledger, trainer = watched(loaded(checkpoints), tmp_path)
    step = trainer.training_step

    def failing(*arguments):
        if trainer.state.global_step == 1:
            raise RuntimeError("stop")
        return step(*arguments)

    trainer.training_step = failing
    with pytest.raises(RuntimeError, match="stop"):
        trainer.train()
    assert len(ledger.credits().accounted) == 1
    trainer.training_step = step
    trainer.train()
    assert len(ledger.credits().accounted) == 4


def test_what_is_refused(checkpoints, tmp_path):
    with pytest.raises(InputError, match="at least one"):
        LedgerCallback([])
    ledger = LedgerCallback(examples(2))
    with pytest.raises(InputError, match="without a training"):
        ledger.credits()
    with pytest.raises(InputError, match=r"call `watch\(trainer\)` before"):
        trainer_of(loaded(checkpoints), tmp_path, [ledger]).train()
    nameless = [{name: one[name] for name in ("input_ids", "labels")} for one in examples()]
    _, trainer = watched(loaded(checkpoints), tmp_path, data=nameless)
    with pytest.raises(InputError, match="no field 'source'"):
        trainer.train()
    _, trainer = watched(loaded(checkpoints), tmp_path)
    trainer.data_collator = lambda batch: {name: each.reshape(1, -1) for name, each in padded(batch).items()}
    with pytest.raises(InputError, match="a batch has 1 rows of 2 examples"):
        trainer.train()
    _, trainer = watched(loaded(checkpoints), tmp_path)
    trainer.compute_loss = lambda model, inputs, **_: model(input_ids=inputs["input_ids"]).logits.float().max()
    with pytest.raises(InputError, match="is neither the sum of its examples' nor their mean"):
        trainer.train()
    _, trainer = watched(loaded(checkpoints), tmp_path, optim="adafactor")
    with pytest.raises(InputError, match="Adafactor: a ledger can be kept of steps"):
        trainer.train()
