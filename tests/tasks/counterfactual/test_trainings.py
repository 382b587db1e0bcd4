"""Trainings are kept one by one: none is done twice, by whatever audit, and what stops leaves what was finished."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dataworth.storage.errors import InputError
from dataworth.tasks.configuration import ClusterConfig
from dataworth.tasks.counterfactual.problem import NamedProblem, Problem
from dataworth.tasks.counterfactual.trainings import Outcomes
from tests.reference.instant import Instant

N, Q = 9, 2


@dataclass(frozen=True)
class Counted(Instant):
    """A "training" that leaves a file, and fails where a file says so; its losses tell the members."""

    title: str = "counted"
    fingerprint: str = "counted"
    n_documents: int = N
    n_queries: int = Q
    folder: Path = Path()

    def losses_after(self, members, seed):
        trained = self.folder / f"{seed} {''.join('01'[int(m)] for m in members)}"
        if trained.exists():
            raise RuntimeError("trained twice")
        if (self.folder / "fail").exists() and len(list(self.folder.iterdir())) > 4:
            raise RuntimeError("the power is out")
        trained.touch()
        return np.array([members @ np.arange(N), seed], np.float64)


def masks(count):
    return np.random.default_rng(0).random((count, N)) < 0.5


def test_it_is_a_problem():
    assert isinstance(Counted(folder=Path()), Problem)


def test_nothing_is_trained_twice_and_what_failed_goes_on(tmp_path):
    problem, cluster, asked = Counted(folder=tmp_path / "trained"), ClusterConfig(workers=1), masks(6)
    problem.folder.mkdir()
    (problem.folder / "fail").touch()
    outcomes = Outcomes(str(tmp_path / "store"), problem, [0, 5], cluster)
    with pytest.raises(RuntimeError, match="power is out"):
        outcomes.measured(asked)
    (problem.folder / "fail").unlink()
    done = len(list(problem.folder.iterdir()))
    assert 0 < done < 12
    found = Outcomes(str(tmp_path / "store"), problem, [0, 5], cluster).measured(asked)
    assert len(list(problem.folder.iterdir())) == 12
    expected = -np.stack([[asked @ np.arange(N), np.full(6, seed)] for seed in (0, 5)])
    np.testing.assert_array_equal(found, expected)
    # Other subsets, one of them known, in another order.
    again = np.concatenate([masks(7)[::-1], asked[:1]])
    assert Outcomes(str(tmp_path / "store"), problem, [0], cluster).measured(again).shape == (1, Q, 8)
    assert len(list(problem.folder.iterdir())) == 13


def test_workers_share_the_trainings(tmp_path):
    problem, asked = Counted(folder=tmp_path / "trained"), masks(9)
    problem.folder.mkdir()
    losses = Outcomes(str(tmp_path / "store"), problem, [1], ClusterConfig(workers=2)).mean_losses(asked)
    np.testing.assert_array_equal(losses, np.stack([asked @ np.arange(N), np.ones(9)], axis=1))


@pytest.mark.parametrize(
    "name", ["no.such.module:made", "dataworth.tasks.counterfactual.digits:nothing", "builtins:dict"]
)
def test_a_name_of_no_problem(name):
    with pytest.raises(InputError, match=r"--audit\.problem"):
        NamedProblem(name).opened()
