"""EK-FAC of a classifier in memory against kronfluence's, from the same rows, empirical labels and damping."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from dataworth.tasks.attribution.logra import LoGra
from dataworth.tasks.curvature.config import CurvatureConfig, DampingConfig
from dataworth.tasks.projection.config import ProjectionConfig
from tests.reference.in_memory import small_classifier, table
from tests.reference.kronfluence import RowDataset, kronfluence_scores

DAMPING = 0.05


def loss(model, batch, sample):
    return cross_entropy(model(batch["inputs"]), batch["labels"], reduction="sum")


@pytest.mark.filterwarnings("ignore")
def test_ekfac_is_kronfluences(tmp_path):
    examples, queries = table(40, 1), table(5, 2)
    curvature = CurvatureConfig(kind="ekfac", labels="empirical", damping=DampingConfig(rule="absolute", value=DAMPING))
    ours = LoGra(ProjectionConfig(kind="identity"), curvature).fit([small_classifier()], examples).score(queries)
    theirs = kronfluence_scores(
        tmp_path,
        small_classifier().model,
        loss,
        RowDataset(examples),
        RowDataset(queries),
        damping=DAMPING,
        dtype=torch.float64,
        batch_size=4,
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())
