"""EK-FAC without projection against kronfluence's, from the same batches and empirical labels."""

import pytest
from transformers import AutoModelForCausalLM

from dataworth.storage.layers import LayerStore
from dataworth.tasks.capture.losses import example_losses
from dataworth.tasks.curvature.config import CurvatureConfig, DampingConfig
from tests.harness.pipeline import (
    PRECISE,
    Pipeline,
    assert_same_scores,
    document_scores,
    in_nats,
    matrix_by_id,
    tokens_of,
)
from tests.reference.kronfluence import WindowDataset, kronfluence_scores

DAMPING = 0.05


def loss(model, batch, sample):
    return example_losses(model(input_ids=batch["input_ids"]).logits, batch["labels"]).sum()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["llama", "llama with biases"])
def test_ekfac_at_full_rank_is_kronfluences(tmp_path, checkpoints, corpus_file, queries_file, name):
    curvature = CurvatureConfig(kind="ekfac", labels="empirical", damping=DampingConfig(rule="absolute", value=DAMPING))
    pipeline = Pipeline(
        tmp_path / "ours", checkpoints[name], corpus_file, queries_file, {"kind": "identity"}, curvature, PRECISE
    )
    names = [layer.name for layer in LayerStore.open(pipeline.bases).layers]
    corpus, queries = tokens_of(pipeline.corpus), tokens_of(pipeline.queries)
    by_window = kronfluence_scores(
        tmp_path / "theirs",
        AutoModelForCausalLM.from_pretrained(checkpoints[name]).eval(),
        loss,
        WindowDataset(corpus),
        WindowDataset(queries),
        damping=DAMPING,
        modules=names,
    )
    assert_same_scores(matrix_by_id(pipeline.scores(), 2), document_scores(pipeline, in_nats(pipeline, by_window)))
