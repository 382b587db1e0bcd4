"""How many tokens one pass may hold, measured on the device instead of guessed."""

from collections.abc import Callable

import torch

__all__ = ["CPU_BATCH_TOKENS", "measured_batch_tokens", "tokens_that_fit"]

# On a CPU larger batches bring no speed: measured flat from 2048 tokens on.
CPU_BATCH_TOKENS = 4096
# On a GPU neither, beyond what keeps it busy; a bound keeps the pinned copies of rows small.
MAX_TOKENS = 65_536
# Share of the device's memory to fill: the allocator needs slack for fragments.
FILLED = 0.85


def tokens_that_fit(capacity: float, one: float, two: float, n_tokens: int) -> int:
    """Tokens of a pass that fills the capacity, a power of two times the tokens of an example, MAX_TOKENS at most.

    Args:
        capacity: bytes a pass may take.
        one, two: bytes that passes of one and of two examples took at their peak.
        n_tokens: of each of these examples.

    Returns:
        At least n_tokens: a single example must be tried, whatever it takes.
    """
    a_row = max(two - one, 1.0)
    n_rows = 1
    while one + (2 * n_rows - 1) * a_row <= capacity and 2 * n_rows * n_tokens <= MAX_TOKENS:
        n_rows *= 2
    return n_rows * n_tokens


def measured_batch_tokens(run: Callable[[int], None], n_tokens: int, device: torch.device) -> int:
    """`tokens_that_fit` of this device's memory, from two trial passes. The same model gets the same on a like device.

    Args:
        run: runs one pass of that many examples of `n_tokens` tokens.
        n_tokens: of the longest example.
        device: of the model.
    """
    if device.type != "cuda":
        return CPU_BATCH_TOKENS
    resident = torch.cuda.memory_allocated(device)
    peaks = []
    for n_rows in (1, 2):
        torch.cuda.reset_peak_memory_stats(device)
        run(n_rows)
        torch.cuda.synchronize(device)
        peaks.append(torch.cuda.max_memory_allocated(device) - resident)
    capacity = FILLED * torch.cuda.get_device_properties(device).total_memory - resident
    return tokens_that_fit(capacity, peaks[0], peaks[1], n_tokens)
