"""The ledger of a training: what each player's documents took off the loss of each query, step by step.

A step of SGD, or of Adam and AdamW with their second moments as they were, is linear in the gradients of the examples,
so that every player has a momentum, and with it a part of the step, of its own. By the midpoint rule the fall of a
query's loss is

    L(theta_k) - L(theta_(k+1)) = - grad L((theta_k + theta_(k+1)) / 2) . (sum of the players' parts + decay)

up to the third order of the step, and each player is credited with its own term. The parts add up to what was measured,
over any grouping; who is split in two gets the same, and copies in one batch share. It is no counterfactual: a player
that pushes the loss up is charged in full, and those are credited who repair it.

Sources: In-Run Data Shapley, Wang et al. 2024 (arXiv 2406.11011); Loss Change Allocation, Lan et al. 2019 (arXiv
1909.01440).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from dataworth.storage.errors import InputError
from dataworth.tasks.progress import run_logger
from dataworth.tasks.training.linear_steps import is_decoupled, refuse_unless_linear, step_parts

__all__ = ["Credits", "Ledger", "evaluated"]

# Part of what was measured that may go unaccounted for without a word.
SILENT = 0.01
# What no player's gradient made of a step: decay, and gradients that were back-propagated outside the ledger.
DECAY, OTHERS = object(), object()
# Of each trained weight, by player; None of a weight that has no gradient.
Book = dict[object, list[Tensor]]
Parts = dict[object, list[Tensor | None]]


@dataclass(frozen=True)
class Credits:
    """What a training came to.

    Args:
        players: their names.
        values: (n_players, q) nats that each took off each query's loss.
        decay: (q,) nats that weight decay took off it.
        others: (q,) nats that gradients of nobody took off it.
        measured: (k + 1, q) losses of the queries before the first step and after every interval of steps.
        accounted: (k, q) sums of what players, decay and others are credited with in each interval.
    """

    players: tuple[Any, ...]
    values: np.ndarray
    decay: np.ndarray
    others: np.ndarray
    measured: np.ndarray
    accounted: np.ndarray

    @property
    def fall(self) -> Float[np.ndarray, " q"]:
        """Nats that the training took off each query, measured."""
        return np.asarray(self.measured[0] - self.measured[-1])

    @property
    def missed(self) -> float:
        """What is accounted for less what was measured, of all queries together, as a part of what was measured."""
        fall = float(self.fall.sum())
        return float(self.accounted.sum() - fall) / fall if fall else float("nan")

    def table(self, queries: Sequence[str] | None = None) -> pd.DataFrame:
        """Columns source, query_id ("*": all together), nats: who took how much off; what nobody did has names, too.

        Args:
            queries: names of the queries; None: their numbers.
        """
        asked = [str(number) for number in range(len(self.decay))] if queries is None else list(queries)
        rows = {**dict(zip(self.players, self.values, strict=True)), "(decay)": self.decay, "(others)": self.others}
        rows["(not accounted for)"] = self.fall - self.accounted.sum(axis=0)
        table = pd.DataFrame(rows, index=pd.Index([*asked], name="query_id"))
        table.loc["*"] = table.sum()
        long = table.reset_index().melt("query_id", var_name="source", value_name="nats")
        return long[["source", "query_id", "nats"]]


class Ledger:
    """Context manager around a training loop that keeps what every player's examples took off the queries' losses.

        with Ledger(model, optimizer, losses_of_queries) as ledger:
            for batch in loader:
                optimizer.zero_grad()
                for source, part in batch.by_source():
                    ledger.backward(model(**part).loss * len(part) / len(batch), source)
                clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
        ledger.credits().values

    Gradients may be accumulated over several batches, scaled and clipped before the step: what the step takes is
    compared with what was back-propagated. Beside the training it takes two copies of the trained weights in float32
    for every player, one for every player in a step, three more, and a gradient of every query for each interval.

    Args:
        model: in evaluation mode while the queries are looked at.
        optimizer: SGD, Adam or AdamW of torch.
        losses: gives the loss of one query after another, with its graph, nats.
        every: steps of an interval; a longer one costs less, and the midpoint rule misses more.
        players: names in the order of the credits; others follow as they come.
        measured: gives all of these losses without their graphs, where that can be done at once.

    Raises:
        InputError: of another optimizer, or one with settings under which a step is not linear.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        losses: Callable[[], Iterable[Tensor]],
        *,
        every: int = 1,
        players: Iterable[Any] = (),
        measured: Callable[[], Sequence[float] | np.ndarray] | None = None,
    ) -> None:
        refuse_unless_linear(optimizer)
        if every < 1:
            raise InputError("every: an interval has a step at least")
        self._model, self._optimizer, self._losses, self._every = model, optimizer, losses, every
        self._without_graphs = measured or (lambda: [float(loss) for loss in losses()])
        self._trained = [weight for weight, _ in _trained(optimizer)]
        self._groups: list[dict[str, Any]] = []
        self._players: dict[Any, None] = dict.fromkeys(players)
        self._parts: Parts = {}
        self._seen: list[tuple[Tensor | None, int]] = [(None, 0)] * len(self._trained)
        self._inside = self._skipped = False
        self._moments: Book = {}
        self._moved: Book = {}
        self._before: list[Tensor] = []
        self._start: list[Tensor] = []
        self._steps = 0
        self._measured: list[np.ndarray] = []
        self._credited: list[dict[object, np.ndarray]] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        self._hooks = [
            self._optimizer.register_step_pre_hook(self._before_step),
            self._optimizer.register_step_post_hook(self._after_step),
            *(
                weight.register_post_accumulate_grad_hook(partial(self._outside, number))
                for number, weight in enumerate(self._trained)
            ),
        ]
        if not self._measured:
            self._measured.append(self._looked_at())
            self._start = [weight.detach().clone() for weight in self._trained]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        if error is None and self._steps % self._every:
            self._close()
        missed = self.credits().missed if error is None and self._credited else 0.0
        if not abs(missed) <= SILENT:
            said = "the ledger misses %.1f %% of what was measured, as its steps are long: %s mends that"
            run_logger().warning(said, 100 * abs(missed), "a lower learning rate, or a look at the queries more often,")

    def backward(self, loss: Tensor, player: Any) -> None:
        """`loss.backward()`, whose gradients are the player's; those of several calls add up until a step."""
        self._players.setdefault(player)
        gathered = [weight.grad for weight in self._trained]
        if not any(one is not None and bool(one.any()) for one in gathered):
            self._parts = {}  # set to zero since the step, or the step was skipped
        for weight in self._trained:
            weight.grad = None
        self._inside = True
        try:
            loss.backward()
        finally:
            self._inside = False
        own = self._parts.setdefault(player, [None] * len(self._trained))
        for number, (weight, before) in enumerate(zip(self._trained, gathered, strict=True)):
            part = weight.grad
            if part is None:
                weight.grad = before
                continue
            known = own[number]
            own[number] = part.clone() if known is None else known.add_(part)
            weight.grad = part if before is None else before.add_(part)
            self._seen[number] = weight.grad, weight.grad._version

    def credits(self) -> Credits:
        """What was credited until now; an interval that is not over yet is left out."""
        players = tuple(self._players)
        n_queries = len(self._measured[0]) if self._measured else 0
        by_interval = np.zeros((len(self._credited), len(players) + 2, n_queries))
        for number, credited in enumerate(self._credited):
            for place, name in enumerate((*players, DECAY, OTHERS)):
                by_interval[number, place] = credited.get(name, 0.0)
        *values, decay, others = by_interval.sum(axis=0)
        return Credits(
            players=players,
            values=np.array(values).reshape(len(players), n_queries),
            decay=decay,
            others=others,
            measured=np.array(self._measured),
            accounted=by_interval.sum(axis=1),
        )

    def state_dict(self) -> dict[str, Any]:
        """All that has to be kept beside a training's checkpoint to go on from it: tensors, arrays and names."""
        spelled = {DECAY: ("decay",), OTHERS: ("others",)}
        return {
            "players": list(self._players),
            "moments": [(spelled.get(name, (name, "player")), own) for name, own in self._moments.items()],
            "moved": [(spelled.get(name, (name, "player")), own) for name, own in self._moved.items()],
            "start": self._start,
            "steps": self._steps,
            "measured": [torch.from_numpy(each) for each in self._measured],
            "credited": [
                [(spelled.get(name, (name, "player")), torch.from_numpy(nats)) for name, nats in each.items()]
                for each in self._credited
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, before the block is entered; the optimizer has its own state again."""
        self._players |= dict.fromkeys(state["players"])
        self._moments, self._moved = (
            {_name(key): self._placed(own) for key, own in state[book]} for book in ("moments", "moved")
        )
        self._start, self._steps = self._placed(state["start"]), state["steps"]
        self._measured = [each.cpu().numpy() for each in state["measured"]]
        self._credited = [{_name(key): nats.cpu().numpy() for key, nats in each} for each in state["credited"]]

    def _placed(self, own: Sequence[Tensor]) -> list[Tensor]:
        return [each.to(weight.device) for each, weight in zip(own, self._trained, strict=True)]

    @torch.no_grad()
    def _outside(self, number: int, weight: Tensor) -> None:
        """What was back-propagated by another than `backward` is of nobody."""
        gradient = weight.grad
        if self._inside or gradient is None:
            return
        before, version = self._seen[number]
        if gradient is not before or gradient._version != version + 1:  # another one, or set to zero since
            for own in self._parts.values():
                own[number] = None
        self._seen[number] = gradient, gradient._version
        left = gradient.clone()
        for name, part in _of_weight(self._parts, number).items():
            if name is not OTHERS:
                left -= part
        self._parts.setdefault(OTHERS, [None] * len(self._trained))[number] = left

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """The optimizer has seen nothing of this step yet."""
        if any(each is not None for each in (*given[1:], *named.values())):  # the first is the optimizer
            raise InputError("a ledger cannot be kept of steps with a closure: propagate before `step()`")
        weights, self._groups = map(list, zip(*_trained(optimizer), strict=True))
        if len(weights) != len(self._trained) or any(a is not b for a, b in zip(weights, self._trained, strict=True)):
            raise InputError("the optimizer has other weights than when its ledger was begun")
        # A fused step is given the scale of a GradScaler, and whether it found an overflow: then it moves nothing.
        overflow, scale = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
        self._skipped = overflow is not None and bool(overflow)
        if self._skipped:
            return
        if any(group["weight_decay"] for group in self._groups):
            self._before = [weight.detach().clone() for weight in self._trained]
        for number, (weight, group) in enumerate(zip(self._trained, self._groups, strict=True)):
            if weight.grad is None:
                for own in self._parts.values():
                    own[number] = None
                continue
            whole = weight.grad if scale is None else weight.grad / scale
            parts = _of_weight(self._parts, number)
            factor, left = _scaled(whole, list(parts.values()))
            for part in parts.values():
                part.mul_(factor)
            if left is not None:  # written into the gradients, not back-propagated
                others = self._parts.setdefault(OTHERS, [None] * len(self._trained))
                own_part = others[number]
                others[number] = left if own_part is None else own_part.add_(left)
            if group["weight_decay"] and not is_decoupled(self._optimizer, group):
                added = weight.detach() * group["weight_decay"]
                self._parts.setdefault(DECAY, [None] * len(self._trained))[number] = added

    @torch.no_grad()
    def _after_step(self, *_: object) -> None:
        if self._skipped:
            self._parts = {}
            return
        for number, (weight, group) in enumerate(zip(self._trained, self._groups, strict=True)):
            if weight.grad is None:  # left as it is, moments and all
                continue
            for name in self._parts:
                if name not in self._moments:
                    self._moments[name] = [_precise_zeros(each) for each in self._trained]
            fresh = _of_weight(self._parts, number)
            books = {name: own[number] for name, own in self._moments.items()}
            for name, step in step_parts(self._optimizer, books, fresh, weight, group):
                self._movement(name)[number].sub_(step, alpha=float(group["lr"]))
            if group["weight_decay"] and is_decoupled(self._optimizer, group):
                decayed = self._before[number].to(_precise(weight))
                self._movement(DECAY)[number].sub_(decayed, alpha=float(group["lr"]) * group["weight_decay"])
        self._parts, self._before = {}, []
        self._steps += 1
        if self._steps % self._every == 0:
            self._close()

    def _movement(self, name: object) -> list[Tensor]:
        if name not in self._moved:
            self._moved[name] = [_precise_zeros(weight) for weight in self._trained]
        return self._moved[name]

    def _close(self) -> None:
        """Credit everybody with the interval that ends here; a new one begins."""
        end = [weight.detach().clone() for weight in self._trained]
        with torch.no_grad():
            for weight, start in zip(self._trained, self._start, strict=True):
                weight.lerp_(start, 0.5)
        credits: dict[object, list[float]] = {name: [] for name in self._moved}
        try:
            with evaluated(self._model), torch.enable_grad():
                for loss in self._losses():
                    gradient = torch.autograd.grad(loss, self._trained, allow_unused=True)
                    for name, moved in self._moved.items():
                        credits[name].append(_along(moved, gradient))
        finally:
            with torch.no_grad():
                for weight, after in zip(self._trained, end, strict=True):
                    weight.copy_(after)
        self._start = end
        for moved in self._moved.values():
            for each in moved:
                each.zero_()
        self._credited.append({name: np.array(each) for name, each in credits.items()})
        self._measured.append(self._looked_at())

    @torch.no_grad()
    def _looked_at(self) -> Float[np.ndarray, " q"]:
        """(q,) losses of the queries, nats."""
        with evaluated(self._model):
            return np.asarray(self._without_graphs(), np.float64)


def _trained(optimizer: Optimizer) -> list[tuple[Tensor, dict[str, Any]]]:
    """Weights that want a gradient, with the settings of their group."""
    pairs = ((weight, group) for group in optimizer.param_groups for weight in group["params"])
    return [(weight, group) for weight, group in pairs if weight.requires_grad]


def _name(key: tuple[Any, ...]) -> Any:
    return key[0] if len(key) == 2 else {"decay": DECAY, "others": OTHERS}[key[0]]


def _of_weight(parts: Parts, number: int) -> dict[object, Tensor]:
    return {name: part for name, own in parts.items() if (part := own[number]) is not None}


def _scaled(whole: Tensor, parts: Sequence[Tensor]) -> tuple[float, Tensor | None]:
    """The factor of the parts' sum that a step takes, as clipping and scaling make it, and what is not of the parts."""
    if not parts:
        return 0.0, whole.clone()
    gathered = torch.stack(list(parts)).sum(dim=0)
    square = float((gathered.double() ** 2).sum())
    if square == 0:
        return 0.0, whole.clone() if bool(whole.any()) else None
    factor = float((whole.double() * gathered.double()).sum()) / square
    left = whole - factor * gathered
    rounding = max(1e-5, 4 * torch.finfo(whole.dtype).eps)
    return factor, None if float(left.norm()) <= rounding * float(whole.norm()) else left


def _along(moved: Sequence[Tensor], gradient: Sequence[Tensor | None]) -> float:
    """Nats that a movement took off a loss with this gradient."""
    total = 0.0
    for step, own in zip(moved, gradient, strict=True):
        if own is not None:
            total -= float(step.flatten() @ own.flatten().to(step))
    return total


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, each module in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _precise(weight: Tensor) -> torch.dtype:
    """Float32 at least."""
    return torch.promote_types(weight.dtype, torch.float32)


def _precise_zeros(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight, dtype=_precise(weight), memory_format=torch.contiguous_format)
