"""EK-FAC without projection against kronfluence's, from the same batches and empirical labels."""

import pytest
import torch
from torch.utils.data import Dataset

from storage.layers import LayerStore
from tasks.capture.losses import example_losses
from tasks.curvature.config import CurvatureConfig, DampingConfig
from tests.reference.pipeline import PRECISE, Pipeline, assert_same_scores, document_scores, matrix_by_id, tokens_of

DAMPING = 0.05


class Windows(Dataset):
    def __init__(self, windows):
        self.windows = windows

    def __len__(self):
        return len(self.windows)

    def __getitem__(self, number):
        input_ids, labels = self.windows[number]
        return {"input_ids": input_ids, "labels": labels}


def kronfluence_scores(folder, checkpoint, names, corpus, queries):
    """(n_queries, n_windows) of kronfluence, one window a batch so that nothing is padded."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task
    from transformers import AutoModelForCausalLM

    class LanguageModelling(Task):
        def compute_train_loss(self, batch, model, sample=False):
            logits = model(input_ids=batch["input_ids"]).logits
            return example_losses(logits, batch["labels"]).sum()

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self):
            return names

    task = LanguageModelling()
    model = prepare_model(AutoModelForCausalLM.from_pretrained(checkpoint).eval(), task)
    analyzer = Analyzer("test", model, task, cpu=True, disable_tqdm=True, output_dir=str(folder))
    train, query = Windows(corpus), Windows(queries)
    arguments = FactorArguments(strategy="ekfac", use_empirical_fisher=True, eigendecomposition_dtype=torch.float64)
    analyzer.fit_all_factors("factors", train, per_device_batch_size=1, factor_args=arguments)
    analyzer.compute_pairwise_scores(
        "scores",
        "factors",
        query,
        train,
        per_device_query_batch_size=1,
        per_device_train_batch_size=1,
        score_args=ScoreArguments(damping_factor=DAMPING),
    )
    return analyzer.load_pairwise_scores("scores")["all_modules"].numpy()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["llama", "llama with biases"])
def test_ekfac_at_full_rank_is_kronfluences(tmp_path, checkpoints, corpus_file, queries_file, name):
    curvature = CurvatureConfig(kind="ekfac", labels="empirical", damping=DampingConfig(rule="absolute", value=DAMPING))
    pipeline = Pipeline(
        tmp_path / "ours", checkpoints[name], corpus_file, queries_file, {"kind": "identity"}, curvature, PRECISE
    )
    names = [layer["name"] for layer in LayerStore.open(pipeline.bases).layers]
    corpus, queries = tokens_of(pipeline.corpus), tokens_of(pipeline.queries)
    by_window = kronfluence_scores(tmp_path / "theirs", checkpoints[name], names, corpus, queries)
    assert_same_scores(matrix_by_id(pipeline.scores(), 2), document_scores(pipeline, by_window))
