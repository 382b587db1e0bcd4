"""A model with its parameters in another order, put back afterwards, also after an error."""

import pytest
import torch

from dataworth.tasks.counterfactual.randomised import randomised
from tests.reference.in_memory import small_classifier


def test_every_parameter_is_permuted_and_put_back():
    model = small_classifier()
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}

    def same():
        return [torch.equal(tensor, before[name]) for name, tensor in model.model.state_dict().items()]

    with randomised([model], 3):
        within = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    assert not any(torch.equal(within[name], before[name]) for name in before)
    assert all(torch.equal(within[n].flatten().sort().values, before[n].flatten().sort().values) for n in before)
    assert all(same())
    with pytest.raises(RuntimeError, match="away"), randomised([model], 3):
        raise RuntimeError("away")
    assert all(same())
    with randomised([model], 3):
        assert all(torch.equal(tensor, within[name]) for name, tensor in model.model.state_dict().items())
