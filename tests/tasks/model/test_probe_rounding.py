"""Whether a batch changes gradients is told from rounding, which grows with a model's depth and training."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from dataworth.tasks.model.halves import halves
from dataworth.tasks.model.layers import tracked_layers
from dataworth.tasks.model.probes import Probe, probe_rows


class Noisy(Probe):
    """Batches of several rows add noise to the gradients.

    Args:
        of_itself: of a row's own, in any batch.
        of_others: that comes with other rows.
    """

    of_itself = of_others = 0.0

    def _gradients(self, numbers, pad_token):
        found = super()._gradients(numbers, pad_token)
        if len(numbers) > 1:
            share = torch.zeros(len(numbers), dtype=found.dtype)
            share[[place for place, number in enumerate(numbers) if number == 0]] = self.of_itself
            if len(set(numbers)) > 1:
                share += self.of_others
            found = found * (1 + share)[:, None, None]
        return found


@pytest.mark.parametrize(
    ("of_itself", "of_others", "batching"),
    [
        (0.0, 0.0, "padded"),
        (6e-3, 0.0, "padded"),  # as much as was met
        (6e-3, 4e-3, "alone"),  # what others do is no rounding
        (0.0, 6e-3, "alone"),
        (4e-2, 0.0, "alone"),  # a batch of copies is wrong, too
    ],
)
def test_rounding_is_told_from_other_rows(checkpoints, tokenizer, of_itself, of_others, batching):
    model = AutoModelForCausalLM.from_pretrained(checkpoints["llama"]).eval().requires_grad_(False)
    rows = probe_rows(tokenizer, len(tokenizer), None)
    probe = Noisy(halves(model), tracked_layers(model), rows, classifies=False, device=torch.device("cpu"))
    probe.of_itself, probe.of_others = of_itself, of_others
    assert probe.batching(0, torch.float32) == batching
