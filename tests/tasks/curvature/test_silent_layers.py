"""A layer that nothing was fitted on is damped as those of its kind; where its kind has none, a sentence."""

import numpy as np
import pytest

from dataworth.tasks.curvature.config import DampingConfig
from dataworth.tasks.curvature.dense import Dense
from dataworth.tasks.curvature.precondition import damped_layers

RELATIVE = DampingConfig(rule="relative", value=0.1)


def test_one_of_many_experts_is_damped_as_its_kind():
    curvatures = {f"experts.up.{n}": Dense(np.eye(2) * n) for n in range(4)} | {"other.7": Dense(np.eye(2) * 1000.0)}
    found = damped_layers(curvatures, RELATIVE)
    assert [round(found[f"experts.up.{n}"].damping, 6) for n in range(4)] == [0.2, 0.1, 0.2, 0.3]
    np.testing.assert_allclose(found["experts.up.0"].applied(np.ones((1, 2))), [[5.0, 5.0]])


def test_a_kind_of_nothing_is_a_sentence():
    with pytest.raises(ValueError, match=r"layer experts\.up\.0: the curvature of a layer is zero"):
        damped_layers({"experts.up.0": Dense(np.zeros((2, 2))), "other": Dense(np.eye(2))}, RELATIVE)
    absolute = damped_layers({"experts.up.0": Dense(np.zeros((2, 2)))}, DampingConfig(rule="absolute", value=0.5))
    assert absolute["experts.up.0"].damping == 0.5
