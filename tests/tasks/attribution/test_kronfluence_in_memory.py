"""EK-FAC of a classifier in memory against kronfluence's, from the same rows, empirical labels and damping."""

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from tasks.attribution.logra import LoGra
from tasks.curvature.config import CurvatureConfig, DampingConfig
from tasks.projection.config import ProjectionConfig
from tests.reference.in_memory import small_classifier, table

DAMPING = 0.05


def kronfluence_scores(folder, model, examples, queries):
    """(n_queries, n_examples) of kronfluence in float64."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Classification(Task):
        def compute_train_loss(self, batch, model, sample=False):
            inputs, labels = batch
            return torch.nn.functional.cross_entropy(model(inputs), labels, reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

    task, precise = Classification(), torch.float64
    analyzer = Analyzer("test", prepare_model(model, task), task, cpu=True, disable_tqdm=True, output_dir=str(folder))
    train, asked = (TensorDataset(rows.inputs, rows.labels) for rows in (examples, queries))
    arguments = FactorArguments(
        strategy="ekfac",
        use_empirical_fisher=True,
        amp_dtype=None,
        activation_covariance_dtype=precise,
        gradient_covariance_dtype=precise,
        eigendecomposition_dtype=precise,
        per_sample_gradient_dtype=precise,
        lambda_dtype=precise,
    )
    analyzer.fit_all_factors("factors", train, per_device_batch_size=4, factor_args=arguments)
    analyzer.compute_pairwise_scores(
        "scores",
        "factors",
        asked,
        train,
        per_device_query_batch_size=4,
        per_device_train_batch_size=4,
        score_args=ScoreArguments(
            damping_factor=DAMPING, score_dtype=precise, per_sample_gradient_dtype=precise, precondition_dtype=precise
        ),
    )
    return analyzer.load_pairwise_scores("scores")["all_modules"].numpy()


@pytest.mark.filterwarnings("ignore")
def test_ekfac_is_kronfluences(tmp_path):
    examples, queries = table(40, 1), table(5, 2)
    curvature = CurvatureConfig(kind="ekfac", labels="empirical", damping=DampingConfig(rule="absolute", value=DAMPING))
    ours = LoGra(ProjectionConfig(kind="identity"), curvature).fit([small_classifier()], examples).score(queries)
    theirs = kronfluence_scores(tmp_path, small_classifier().model, examples, queries)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())
