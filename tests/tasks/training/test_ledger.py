"""The ledger of a training: the same training, its parts add up to what was measured, and each is what it should be."""

import numpy as np
import pytest
import torch

from dataworth.storage.corpus import CorpusStore
from dataworth.tasks.corpus.config import CorpusConfig, QueriesConfig
from dataworth.tasks.corpus.groups import document_groups
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.corpus.steps import prepare_corpus, prepare_queries
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import load
from dataworth.tasks.training.config import TrainingConfig
from dataworth.tasks.training.retraining import as_it_was, train
from dataworth.tasks.training.small_model import learning_rates, shuffled_batches
from dataworth.tasks.training.training_with_ledger import ledger_of

TRAINING = TrainingConfig(epochs=4, batch_tokens=96, learning_rate=3e-3, weight_decay=0.1, seed=1)


@pytest.fixture
def given(tmp_path, checkpoints, corpus_file, queries_file):
    """A small model, its corpus with a player for every window, and queries."""
    config = ModelConfig(name=str(checkpoints["llama"]), device="cpu")
    corpus = CorpusStore.open(
        prepare_corpus(str(tmp_path), config, CorpusConfig(files=[str(corpus_file)], max_length=24))
    )
    queries = CorpusStore.open(prepare_queries(str(tmp_path), config, QueriesConfig(file=str(queries_file))))
    names = sorted(set(document_groups(corpus, "source")))
    of = np.array([names.index(name) for name in document_groups(corpus, "source")])
    return load(config), corpus, queries, of[corpus.windows["document"]], len(names)


def kept(given, training=TRAINING, players=None, n_players=None, every=1):
    loaded, corpus, queries, of, n = given
    with as_it_was(loaded):
        made = ledger_of(
            loaded,
            corpus,
            np.arange(len(of)),
            of if players is None else players,
            n_players or n,
            queries,
            training,
            every,
        )
        return made, query_losses(loaded, queries)


def test_it_is_the_training_that_it_accounts_for(given):
    loaded, corpus, queries, of, _ = given
    made, end = kept(given)
    with as_it_was(loaded):
        train(loaded, corpus, np.arange(len(of)), TRAINING)
        np.testing.assert_allclose(end, query_losses(loaded, queries), rtol=1e-4)
    np.testing.assert_allclose(made.measured[0], query_losses(loaded, queries))
    np.testing.assert_allclose(made.measured[-1], end)
    assert made.fall.sum() > 1


def test_what_is_credited_is_what_was_measured(given):
    made, _ = kept(given)
    assert abs(made.missed) < 5e-3
    np.testing.assert_allclose(made.accounted.sum(axis=0), made.fall, atol=0.01 * np.abs(made.fall).max())
    np.testing.assert_allclose(made.values.sum(axis=0) + made.decay, made.accounted.sum(axis=0), rtol=1e-9)
    falls = made.measured[:-1] - made.measured[1:]
    assert np.abs(made.accounted - falls).max() < 0.02 * np.abs(falls).max()


def test_longer_intervals_miss_more_and_still_add_up(given):
    made, _ = kept(given, every=3)
    n_steps = len(shuffled_batches(given[1].windows["n_tokens"].tolist(), TRAINING))
    assert len(made.accounted) == -(-n_steps // 3)
    assert 0 < abs(made.missed) < 0.1


def test_who_is_split_in_two_gets_the_same(given):
    _, _, _, of, n = given
    made, _ = kept(given)
    halves = np.where((of == 0) & (np.arange(len(of)) % 2 == 0), n, of)
    split, _ = kept(given, players=halves, n_players=n + 1)
    scale = np.abs(made.values).max()
    np.testing.assert_allclose(split.values[0] + split.values[n], made.values[0], atol=1e-4 * scale)
    np.testing.assert_allclose(split.values[1:n], made.values[1:], atol=1e-4 * scale)


def test_who_is_absent_gets_nothing(given):
    _, _, _, of, n = given
    made, _ = kept(given, players=of, n_players=n + 2)
    assert (made.values[n:] == 0).all()


def test_each_part_is_its_own_moment_over_the_common_spread(given):
    """Against AdamW written out in float64, and credits by finite differences along each part."""
    loaded, corpus, queries, of, n = given
    training = TRAINING.model_copy(update={"epochs": 1})
    model = loaded.model.double()
    try:
        made, _ = kept(given, training)
        model.requires_grad_(True)
        expected = written_out(model, corpus, queries, of, n, training)
    finally:
        model.float().requires_grad_(False)
    # Its norms are in float32 whatever the weights are, which finite differences see.
    np.testing.assert_allclose(np.vstack([made.values, made.decay[None]]), expected, rtol=1e-4, atol=2e-4)


def written_out(model, corpus, queries, of, n, training):
    """(n + 1, q) credits, decay last."""
    weights = list(model.parameters())
    before = [weight.detach().clone() for weight in weights]

    def losses(store, windows):
        found = []
        for window in windows:
            ids = torch.from_numpy(store.tokens(int(window)).astype(np.int64))[None]
            labels = ids.clone()
            labels[:, : store.windows["n_masked"][window]] = -100
            logs = torch.log_softmax(model(input_ids=ids).logits[:, :-1], dim=-1)
            known = labels[:, 1:] != -100
            found.append(-logs[known].gather(1, ids[:, 1:][known][:, None]).sum())
        return found

    def moved(direction, step):
        with torch.no_grad():
            for weight, own in zip(weights, direction, strict=True):
                weight.add_(own, alpha=step)

    batches = shuffled_batches(corpus.windows["n_tokens"].tolist(), training)
    rates = learning_rates(len(batches), training.learning_rate)
    moments = [[torch.zeros_like(weight) for weight in weights] for _ in range(n)]
    second = [torch.zeros_like(weight) for weight in weights]
    credits = np.zeros((n + 1, queries.n_examples))
    for step, (batch, rate) in enumerate(zip(batches, rates, strict=True), 1):
        batch = np.array(batch)
        n_targets = sum(int(corpus.windows["n_tokens"][w]) - max(int(corpus.windows["n_masked"][w]), 1) for w in batch)
        parts = []
        for player in range(n):
            own = losses(corpus, batch[of[batch] == player])
            if own:
                parts.append(torch.autograd.grad(sum(own) / n_targets, weights))
            else:
                parts.append([torch.zeros_like(weight) for weight in weights])
        whole = [sum(each) for each in zip(*parts, strict=True)]
        norm = torch.sqrt(sum((each**2).sum() for each in whole))
        factor = min(1.0, 1.0 / (float(norm) + 1e-6))
        second = [0.999 * v + 0.001 * (factor * g) ** 2 for v, g in zip(second, whole, strict=True)]
        moments = [
            [0.9 * m + 0.1 * factor * g for m, g in zip(own, part, strict=True)]
            for own, part in zip(moments, parts, strict=True)
        ]
        spread = [torch.sqrt(v / (1 - 0.999**step)) + 1e-8 for v in second]
        steps = [[-rate * m / (1 - 0.9**step) / s for m, s in zip(own, spread, strict=True)] for own in moments]
        steps.append([-rate * training.weight_decay * weight.detach() for weight in weights])
        whole_step = [sum(each) for each in zip(*steps, strict=True)]
        moved(whole_step, 0.5)
        for player, own in enumerate(steps):
            with torch.no_grad():
                moved(own, 0.01)
                high = torch.stack(losses(queries, range(queries.n_examples)))
                moved(own, -0.02)
                low = torch.stack(losses(queries, range(queries.n_examples)))
                moved(own, 0.01)
            credits[player] += ((low - high) / 0.02).numpy()
        moved(whole_step, 0.5)
    with torch.no_grad():
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(old)
    return credits
