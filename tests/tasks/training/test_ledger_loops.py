"""The ledger around anyone's loop: each player's part against finite differences along steps that are written out."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from dataworth.storage.errors import InputError
from dataworth.tasks.training.ledger import Ledger

PLAYERS, STEPS, CLIPPED = ("a", "b", "c"), 6, 0.5
OPTIMIZERS = {
    "SGD": lambda weights: torch.optim.SGD(weights, lr=0.05),
    "SGD, momentum and decay": lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9, weight_decay=0.1),
    "SGD, Nesterov": lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda weights: torch.optim.Adam(weights, lr=0.02),
    "Adam, decay": lambda weights: torch.optim.Adam(weights, lr=0.02, weight_decay=0.1),
    "AdamW": lambda weights: torch.optim.AdamW(weights, lr=0.02, weight_decay=0.1),
    "AdamW, two groups": lambda weights: torch.optim.AdamW(
        [{"params": weights[:1], "weight_decay": 0.0}, {"params": weights[1:], "lr": 0.01}], lr=0.02
    ),
}


@dataclass
class Loop:
    """A small problem: a model, examples of players in every step, and queries."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    examples: dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]]
    queries: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def made(cls, optimizer: Callable = OPTIMIZERS["AdamW"]) -> "Loop":
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Dropout(0.0), nn.Linear(7, 3)).double()
        examples = {
            (step, player): (torch.randn(4, 5).double(), torch.randint(0, 3, (4,)))
            for step in range(STEPS)
            for player in PLAYERS
            if (step, player) != (2, "b")  # who is absent in a step still moves by its momentum
        }
        queries = torch.randn(4, 5).double(), torch.randint(0, 3, (4,))
        return cls(model, optimizer(list(model.parameters())), examples, queries)

    def losses(self):
        for asked, answer in zip(*self.queries, strict=True):
            yield nn.functional.cross_entropy(self.model(asked[None]), answer[None])

    def loss(self, step, player):
        asked, answers = self.examples[step, player]
        return nn.functional.cross_entropy(self.model(asked), answers, reduction="sum") / 12

    def step(self, ledger, step, outside=()):
        self.model.train()
        for player in PLAYERS:
            if (step, player) in self.examples:
                loss = self.loss(step, player)
                loss.backward() if player in outside else ledger.backward(loss, player)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIPPED)
        self.optimizer.step()
        self.optimizer.zero_grad()


def kept(loop, every=1, **settings):
    with Ledger(loop.model, loop.optimizer, loop.losses, every=every, **settings) as ledger:
        for step in range(STEPS):
            loop.step(ledger, step)
    return ledger


def weights_of(loop):
    return torch.cat([weight.detach().flatten() for weight in loop.model.parameters()])


def put(loop, flat):
    with torch.no_grad():
        for weight, part in zip(
            loop.model.parameters(), flat.split([w.numel() for w in loop.model.parameters()]), strict=True
        ):
            weight.copy_(part.view_as(weight))


def written_out(loop):
    """(players, decay) credits by finite differences along each one's part of every step.

    A step is linear in gradients once its second moments are known: a player's part is what the optimizer would do with
    the gradients of that player alone, its other state as it was.
    """
    names = [*PLAYERS, "decay"]
    credits = np.zeros((len(names), len(loop.queries[1])))
    momenta = {name: torch.zeros_like(weights_of(loop)) for name in names}
    for step in range(STEPS):
        start = weights_of(loop)
        gradients = {}
        for player in PLAYERS:
            if (step, player) in loop.examples:
                found = torch.autograd.grad(loop.loss(step, player), list(loop.model.parameters()))
                gradients[player] = torch.cat([each.flatten() for each in found])
        whole = sum(gradients.values())
        factor = min(1.0, CLIPPED / (float(whole.norm()) + 1e-6))
        rate, decay = (
            torch.cat([torch.full_like(w, group[name]).flatten() for group in loop.optimizer.param_groups
                       for w in group["params"]])
            for name in ("lr", "weight_decay")
        )  # fmt: skip
        for weight, part in zip(
            loop.model.parameters(), (whole * factor).split([w.numel() for w in loop.model.parameters()]), strict=True
        ):
            weight.grad = part.view_as(weight).clone()
        loop.optimizer.step()
        loop.optimizer.zero_grad()
        group, adam = loop.optimizer.param_groups[0], isinstance(loop.optimizer, torch.optim.Adam)
        decoupled = isinstance(loop.optimizer, torch.optim.AdamW)
        if adam:
            states = [loop.optimizer.state[weight] for weight in loop.model.parameters()]
            second = torch.cat([state["exp_avg_sq"].flatten() for state in states]) / (1 - 0.999 ** (step + 1))
            spread = second.sqrt() + group["eps"]
        parts = {}
        for name in names:
            own = gradients.get(name, torch.zeros_like(start)) * factor
            if name == "decay" and not decoupled:
                own = decay * start
            if adam:
                momenta[name] = 0.9 * momenta[name] + 0.1 * own
                parts[name] = -rate * momenta[name] / (1 - 0.9 ** (step + 1)) / spread
            else:
                momenta[name] = group["momentum"] * momenta[name] + own
                look_ahead = own + group["momentum"] * momenta[name]
                parts[name] = -rate * (look_ahead if group["nesterov"] else momenta[name])
            if name == "decay" and decoupled:
                parts[name] = -rate * decay * start
        end = weights_of(loop)
        torch.testing.assert_close(start + sum(parts.values()), end)
        for number, name in enumerate(names):
            found = []
            for sign in (-1, 1):
                put(loop, (start + end) / 2 + sign * 1e-4 * parts[name])
                found.append(np.array([loss.item() for loss in loop.losses()]))
            credits[number] += (found[0] - found[1]) / 2e-4
        put(loop, end)
    return credits


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_part_is_right_for_every_optimizer(name):
    ledger = kept(Loop.made(OPTIMIZERS[name]), players=PLAYERS)
    expected = written_out(Loop.made(OPTIMIZERS[name]))
    found = ledger.credits()
    assert found.players == PLAYERS
    np.testing.assert_allclose(np.vstack([found.values, found.decay]), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found.others, 0)
    assert abs(found.missed) < 0.01


def test_the_training_is_what_it_would_be_without():
    plain, watched = Loop.made(), Loop.made()
    kept(watched, every=2)
    for step in range(STEPS):
        for player in PLAYERS:
            if (step, player) in plain.examples:
                plain.loss(step, player).backward()
        torch.nn.utils.clip_grad_norm_(plain.model.parameters(), CLIPPED)
        plain.optimizer.step()
        plain.optimizer.zero_grad()
    torch.testing.assert_close(weights_of(watched), weights_of(plain), rtol=1e-12, atol=1e-12)
    assert watched.model.training


def test_what_is_propagated_outside_is_of_others():
    loop = Loop.made()
    with Ledger(loop.model, loop.optimizer, loop.losses) as ledger:
        for step in range(STEPS):
            loop.step(ledger, step, outside=("c",))
    found, whole = ledger.credits(), kept(Loop.made(), players=PLAYERS).credits()
    assert found.players == ("a", "b")
    np.testing.assert_allclose(found.values, whole.values[:2], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.others, whole.values[2], rtol=1e-6, atol=1e-9)


def test_a_skipped_step_is_nobodys():
    """As a scaler of gradients does where they overflow."""
    loop = Loop.made()
    with Ledger(loop.model, loop.optimizer, loop.losses, players=PLAYERS) as ledger:
        for step in range(STEPS):
            if step == 3:
                for scale in (1e6, 1.0):
                    loop.optimizer.zero_grad(set_to_none=scale == 1.0)
                    if scale > 1:
                        ledger.backward(loop.loss(0, "a") * scale, "a")
            loop.step(ledger, step)
    np.testing.assert_allclose(ledger.credits().values, kept(Loop.made(), players=PLAYERS).credits().values)


@pytest.mark.parametrize("unscaled", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_scaled_gradients_are_the_same_and_an_overflow_moves_nothing(fused, unscaled):
    loop = Loop.made(lambda weights: torch.optim.AdamW(weights, lr=0.02, fused=fused))
    expected = Loop.made(lambda weights: torch.optim.AdamW(weights, lr=0.02))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    with (
        Ledger(loop.model, loop.optimizer, loop.losses, players=PLAYERS) as ledger,
        Ledger(expected.model, expected.optimizer, expected.losses, players=PLAYERS) as plain,
    ):
        for step in range(4):
            for player in PLAYERS:
                if (step, player) in loop.examples:
                    worse = float("inf") if step == 1 else 1.0
                    ledger.backward(scaler.scale(loop.loss(step, player)) * worse, player)
                    if step != 1:
                        plain.backward(expected.loss(step, player), player)
            if unscaled:
                scaler.unscale_(loop.optimizer)
            scaler.step(loop.optimizer)
            scaler.update()
            loop.optimizer.zero_grad()
            if step != 1:
                expected.optimizer.step()
                expected.optimizer.zero_grad()
    found, whole = ledger.credits(), plain.credits()
    np.testing.assert_allclose(found.values, whole.values, rtol=1e-5, atol=1e-8)
    assert abs(found.missed) < 0.02


@pytest.mark.parametrize("to_none", [True, False])
def test_discarded_gradients_are_nobodys(to_none):
    loop = Loop.made()
    with Ledger(loop.model, loop.optimizer, loop.losses) as ledger:
        ledger.backward(loop.loss(0, "a"), "a")
        loop.optimizer.zero_grad(set_to_none=to_none)
        loop.loss(0, "b").backward()
        loop.optimizer.step()
    credits = ledger.credits()
    np.testing.assert_array_equal(credits.values, 0)
    np.testing.assert_allclose(credits.others + credits.decay, credits.fall, rtol=0.05)


def test_an_optimizer_that_is_loaded_later_has_its_rates(tmp_path):
    slow = Loop.made(lambda weights: torch.optim.AdamW(weights, lr=1e-3))
    loop = Loop.made(lambda weights: torch.optim.AdamW(weights, lr=0.02))
    ledger = Ledger(loop.model, loop.optimizer, loop.losses, players=PLAYERS)
    loop.optimizer.load_state_dict(slow.optimizer.state_dict())
    with ledger:
        for step in range(STEPS):
            loop.step(ledger, step)
    assert abs(ledger.credits().missed) < 1e-3
    loop.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    with pytest.raises(InputError, match="other weights than when its ledger was begun"), ledger:
        loop.step(ledger, 0)


def test_a_stopped_training_goes_on_with_its_books(tmp_path):
    loop = Loop.made()
    with Ledger(loop.model, loop.optimizer, loop.losses, every=2) as first:
        for step in range(3):
            loop.step(first, step)
        torch.save([loop.model.state_dict(), loop.optimizer.state_dict(), first.state_dict()], tmp_path / "all.pt")
    other = Loop.made()
    model, optimizer, books = torch.load(tmp_path / "all.pt", weights_only=True)
    other.model.load_state_dict(model)
    other.optimizer.load_state_dict(optimizer)
    ledger = Ledger(other.model, other.optimizer, other.losses, every=2)
    ledger.load_state_dict(books)
    with ledger:
        for step in range(3, STEPS):
            other.step(ledger, step)
    whole = kept(Loop.made(), every=2).credits()
    np.testing.assert_allclose(ledger.credits().values, whole.values, rtol=1e-9)
    np.testing.assert_allclose(ledger.credits().measured, whole.measured, rtol=1e-9)


def test_an_interval_that_is_cut_short_is_counted_and_one_of_an_error_is_not():
    assert len(kept(Loop.made(), every=4).credits().accounted) == 2
    loop = Loop.made()
    ledger = Ledger(loop.model, loop.optimizer, loop.losses, every=4)

    def interrupted():
        with ledger:
            for step in range(5):
                loop.step(ledger, step)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(ledger.credits().accounted) == 1
    loop.step(ledger, 5, outside=PLAYERS)  # its hooks are gone
    assert len(ledger.credits().accounted) == 1


def test_frozen_weights_are_left_alone_and_closures_refused():
    loop = Loop.made()
    loop.model[0].weight.requires_grad_(False)
    credits = kept(loop, players=PLAYERS).credits()
    falls = credits.measured[:-1] - credits.measured[1:]
    np.testing.assert_allclose(credits.accounted, falls, atol=0.02 * np.abs(falls).max())
    closed = Loop.made()
    with (
        pytest.raises(InputError, match="steps with a closure"),
        Ledger(closed.model, closed.optimizer, closed.losses),
    ):
        closed.optimizer.step(lambda: closed.loss(0, "a"))


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (lambda weights: torch.optim.RMSprop(weights), "RMSprop: a ledger can be kept of steps of torch's SGD"),
        (lambda weights: torch.optim.AdamW(weights, amsgrad=True), "no ledger can be kept of steps with amsgrad"),
        (lambda weights: torch.optim.SGD(weights, lr=1.0, maximize=True), "with maximize"),
        (lambda weights: torch.optim.SGD(weights, lr=1.0, momentum=0.9, dampening=0.1), "with dampening"),
    ],
)
def test_other_steps_are_refused(optimizer, said):
    loop = Loop.made(optimizer)
    with pytest.raises(InputError, match=said):
        Ledger(loop.model, loop.optimizer, loop.losses)
    with pytest.raises(InputError, match="every: an interval has a step"):
        Ledger(loop.model, torch.optim.SGD(loop.model.parameters(), lr=1.0), loop.losses, every=0)
