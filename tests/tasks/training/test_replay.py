"""Derivatives of whole trainings against central differences of the same trainings by torch's own optimisers."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GPT2Config, GPT2LMHeadModel

from dataworth.tasks.capture.losses import IGNORED, next_tokens
from dataworth.tasks.training import replay as replay_module
from dataworth.tasks.training.optimizers import SGD, Adam, Clipping
from dataworth.tasks.training.recipes import Outputs, Recipe, Step
from dataworth.tasks.training.replay import Replay, _GaussNewton

N, WIDTH, CLASSES, EPOCHS, BATCH = 12, 5, 3, 4, 4
VOCABULARY, LENGTH = 17, 7


@dataclass(frozen=True)
class Rows:
    """Examples, of which only the rows matter here."""

    inputs: torch.Tensor
    labels: torch.Tensor | None = None

    @property
    def n_examples(self):
        return len(self.inputs)


@dataclass(frozen=True)
class Problem:
    """A small model in float64, what it is trained on and asked, and what it says of rows."""

    model: nn.Module
    examples: Rows
    queries: Rows
    reads: object

    def losses(self, call, rows, numbers):
        """(b,) nats of some rows."""
        outputs = self.reads(call, rows, numbers)
        return torch.zeros(len(numbers)).double().index_add(0, outputs.owners, outputs.losses())


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()

    def reads(call, rows, numbers):
        return Outputs(call(rows.inputs[numbers]), rows.labels[numbers], torch.arange(len(numbers)))

    examples, queries = (Rows(torch.randn(n, WIDTH).double(), torch.randint(CLASSES, (n,))) for n in (N, 3))
    return Problem(model, examples, queries, reads)


def language_model(lora=False, dropout=0.0):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=8, n_layer=2, n_head=2, n_positions=LENGTH, use_cache=False, bos_token_id=0,
        eos_token_id=0, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).double()  # which, unlike Llama, computes nothing in single precision
    if lora:
        adapters = LoraConfig(
            r=2, target_modules=["c_attn", "c_fc", "c_proj"], init_lora_weights=False, fan_in_fan_out=True
        )
        model = get_peft_model(model, adapters).double()

    def reads(call, rows, numbers):
        ids = rows.inputs[numbers]
        logits, owners = call(input_ids=ids).logits.flatten(0, 1), torch.arange(len(ids))
        return Outputs(logits, next_tokens(ids).flatten(), owners.repeat_interleave(LENGTH))

    examples, queries = (Rows(torch.randint(VOCABULARY, (n, LENGTH))) for n in (N, 3))
    return Problem(model, examples, queries, reads)


def recipe_of(problem, steps, optimizer, clipped, seed=0):
    trained = tuple(name for name, weight in problem.model.named_parameters() if weight.requires_grad)
    clipping = Clipping(clipped)
    return Recipe(problem.model, trained, steps, problem.examples, problem.reads, optimizer, clipping, seed)


def steps_of(rate, parts=1):
    generator = np.random.default_rng(0)
    batches = [order for _ in range(EPOCHS) for order in generator.permutation(N).reshape(-1, BATCH)]
    return [
        Step(tuple(np.array_split(batch, parts)), rate * (1 - number / len(batches)), float(BATCH))
        for number, batch in enumerate(batches)
    ]


def by_call(model, weights, *arguments, **named):
    return functional_call(model, weights, arguments, named)


def by_torch(problem, steps, optimizer, clipped, weights):
    """(q,) outcomes after torch's own training on weighted losses; the model is as it was afterwards."""
    model = problem.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    stepping = optimizer(trained)
    for step in steps:
        stepping.param_groups[0]["lr"] = step.rate
        stepping.zero_grad()
        for part in step.parts:
            ((weights[part] * problem.losses(model, problem.examples, part)).sum() / step.divisor).backward()
        if clipped:
            torch.nn.utils.clip_grad_norm_(trained, clipped)
        stepping.step()
    with torch.no_grad():
        found = problem.losses(model, problem.queries, np.arange(3))
    model.load_state_dict(before)
    return found


SMOOTH = 1e-4
CASES = {
    "SGD": (network, SGD(0.0, 0.0), lambda p: torch.optim.SGD(p), 0.3, None, 1),
    "SGD, momentum, decay": (
        network,
        SGD(0.9, 0.05),
        lambda p: torch.optim.SGD(p, momentum=0.9, weight_decay=0.05),
        0.1,
        None,
        1,
    ),
    "Adam, decay of the loss": (
        network,
        Adam((0.8, 0.9), 1e-3, 0.05, decays_loss=True),
        lambda p: torch.optim.Adam(p, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.05),
        0.03,
        None,
        1,
    ),
    "AdamW": (
        network,
        Adam((0.8, 0.9), SMOOTH, 0.1),
        lambda p: torch.optim.AdamW(p, betas=(0.8, 0.9), eps=SMOOTH, weight_decay=0.1),
        0.03,
        None,
        1,
    ),
    "clipped": (network, SGD(0.9), lambda p: torch.optim.SGD(p, momentum=0.9), 0.2, 0.2, 1),
    "accumulated": (
        network,
        Adam(eps=SMOOTH),
        lambda p: torch.optim.AdamW(p, eps=SMOOTH, weight_decay=0.0),
        0.02,
        0.3,
        3,
    ),
    "language model": (
        language_model,
        Adam(eps=SMOOTH),
        lambda p: torch.optim.AdamW(p, eps=SMOOTH, weight_decay=0.0),
        0.003,
        1.0,
        1,
    ),
    "LoRA": (
        lambda: language_model(lora=True),
        Adam(eps=SMOOTH),
        lambda p: torch.optim.AdamW(p, eps=SMOOTH, weight_decay=0.0),
        0.003,
        1.0,
        2,
    ),
}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # peft asks transformers by the old name
@pytest.mark.parametrize("name", CASES)
def test_derivatives_are_those_of_differences(name):
    made, optimizer, of_torch, rate, clipped, parts = CASES[name]
    problem, steps = made(), steps_of(rate, parts)
    replay = Replay(recipe_of(problem, steps, optimizer, clipped), exact=True)
    ones = torch.ones(N, dtype=torch.float64)
    straight = by_torch(problem, steps, of_torch, clipped, ones)
    with torch.no_grad():
        here = problem.losses(partial(by_call, problem.model, replay.weights()), problem.queries, np.arange(3))
    torch.testing.assert_close(here, straight, rtol=1e-6, atol=1e-9)
    found = replay.derivatives(problem.queries)
    h = 1e-4
    for number in (0, 5, 11):
        up, down = ones.clone(), ones.clone()
        up[number] += h
        down[number] -= h
        over, under = (by_torch(problem, steps, of_torch, clipped, each) for each in (up, down))
        expected = (over - under) / (2 * h)
        np.testing.assert_allclose(found[:, number], expected.numpy(), rtol=1e-4, atol=1e-4 * np.abs(found).max())


@pytest.mark.parametrize("memory", [0, 60_000, 150_000])
def test_states_that_are_computed_again_change_nothing(memory):
    problem = language_model(dropout=0.2)
    problem.model.train()
    recipe = recipe_of(problem, steps_of(0.003, 2), Adam(), 1.0, seed=3)
    kept, again = Replay(recipe).derivatives(problem.queries), Replay(recipe, memory).derivatives(problem.queries)
    np.testing.assert_allclose(again, kept, rtol=1e-9)


def test_the_gauss_newton_matrix_is_the_hessian_of_a_model_that_is_linear(monkeypatch):
    """A network without a hidden layer: both are the same matrix, and the derivatives the same."""
    problem = network()
    problem = replace(problem, model=nn.Linear(WIDTH, CLASSES).double())
    recipe = recipe_of(problem, steps_of(0.03, 2), Adam((0.8, 0.9), SMOOTH, 0.1), 0.3)
    exact = Replay(recipe, exact=True).derivatives(problem.queries)
    with monkeypatch.context() as patched:
        patched.setattr(replay_module, "_no_longer", lambda adjoint, _: adjoint)
        patched.setattr(replay_module, "FLOOR", 0.0)
        found = Replay(recipe).derivatives(problem.queries)
    np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("made", [network, language_model])
def test_the_gauss_newton_matrix_is_what_its_definition_says(made):
    """One step from a model: what the second derivatives of its losses by the logits say, through dense Jacobians."""
    problem = made()
    numbers = np.arange(BATCH)
    recipe = recipe_of(problem, [Step((numbers,), 1.0, 2.0)], SGD(), None)
    start = torch.cat([weight.detach().flatten() for weight in problem.model.parameters()])
    replay = Replay(recipe)
    with sdpa_kernel(SDPBackend.MATH):
        part = _GaussNewton(replay._call, recipe, numbers, start, 2.0)

    def says(weights):
        return problem.reads(replay._call(weights), problem.examples, numbers)

    outputs = says(start)
    counts = outputs.targets != IGNORED
    jacobian = torch.autograd.functional.jacobian(lambda weights: says(weights).logits[counts], start)
    chances = outputs.logits[counts].softmax(-1)
    bent = torch.diag_embed(chances) - chances[:, :, None] * chances[:, None, :]
    vector = torch.randn(len(start), dtype=torch.float64)
    expected = torch.einsum("pvw,pvc,pcx,x->w", jacobian, bent, jacobian, vector) / 2.0
    further, rises = part.along(vector)
    torch.testing.assert_close(further, expected)
    each = torch.autograd.functional.jacobian(
        lambda weights: problem.losses(replay._call(weights), problem.examples, numbers), start
    )
    torch.testing.assert_close(rises, each @ vector / 2.0)
    torch.testing.assert_close(part.gradient, each.sum(dim=0) / 2.0)


def test_what_a_rough_training_tells_is_steadied():
    """A calm training tells the same both ways; of a rough one exact derivatives explode."""
    problem, lengths = network(), {}
    for rate in (0.01, 1.0):
        recipe = recipe_of(problem, steps_of(rate) * 8, Adam(), None)
        lengths[rate] = [
            np.linalg.norm(Replay(recipe, exact=exact).derivatives(problem.queries), axis=1).max()
            for exact in (True, False)
        ]
    exact, steadied = lengths[0.01]
    assert steadied == pytest.approx(exact, rel=0.5)
    assert lengths[1.0][0] > 100 * exact
    assert lengths[1.0][1] < lengths[1.0][0] / 5
