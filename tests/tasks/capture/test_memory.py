"""How many tokens a pass may hold."""

import pytest
import torch

from dataworth.tasks.capture.memory import CPU_BATCH_TOKENS, MAX_TOKENS, measured_batch_tokens, tokens_that_fit


@pytest.mark.parametrize(
    ("capacity", "one", "two", "expected"),
    [
        (1000, 100, 150, 16 * 512),  # 100 + 15 * 50 = 850 fits, 100 + 31 * 50 does not
        (849, 100, 150, 8 * 512),
        (10, 100, 150, 512),  # a single example is tried anyway
        (1e12, 100, 100, MAX_TOKENS),
    ],
)
def test_tokens_that_fit(capacity, one, two, expected):
    assert tokens_that_fit(capacity, one, two, 512) == expected


def test_a_cpu_needs_no_measure():
    def never(n_rows):
        raise AssertionError

    assert measured_batch_tokens(never, 512, torch.device("cpu")) == CPU_BATCH_TOKENS


@pytest.mark.gpu
def test_a_measured_batch_fits_the_gpu():
    device = torch.device("cuda")
    bytes_a_token = 4 * 2**20

    def run(n_rows):
        torch.empty(n_rows * 256 * bytes_a_token, dtype=torch.uint8, device=device)

    tokens = measured_batch_tokens(run, 256, device)
    total = torch.cuda.get_device_properties(device).total_memory
    assert 256 <= tokens <= 0.85 * total / bytes_a_token
    run(tokens // 256)
