"""What of a conversation, and of a prompt and its completion, a training taught."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Loss", "Taught"]

Loss = Literal["answers", "last", "all"]


@dataclass(frozen=True)
class Taught:
    """How a training read what is no plain text.

    Args:
        loss: whose loss it took; `answers`: of the assistant's turns, or of what follows a prompt; `last`: of the
            assistant's last turn.
        template: the chat template; None: the model's own.
        eos: whether the end token followed every text; None: the completions of pairs alone.
    """

    loss: Loss = "answers"
    template: str | None = None
    eos: bool | None = None
