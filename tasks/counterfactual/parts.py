"""What passes between the tasks of an audit."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from dataworth.storage.ref import StoreRef
from dataworth.tasks.curvature.config import CurvatureConfig
from dataworth.tasks.projection.config import ProjectionConfig

__all__ = ["Chosen", "Control", "Findings", "MethodRun", "Scored"]

Control = Literal["", "randomised", "shuffled"]


class MethodRun(BaseModel):
    """A method to be run.

    Args:
        method: its name.
        projection, curvature: of the run, which methods take their settings from.
        control: randomised: at models whose parameters are in random order; shuffled: with labels that are.
        seed: of random scores and shuffled labels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    projection: ProjectionConfig
    curvature: CurvatureConfig
    control: Control = ""
    seed: int = 0

    @property
    def title(self) -> str:
        """In a few words."""
        return f"{self.method}, {self.control}" if self.control else self.method


class Scored(BaseModel):
    """A method's scores.

    Args:
        name: in the tables.
        run: the method.
        scores: its store.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    run: MethodRun
    scores: StoreRef


class Chosen(BaseModel):
    """What a sweep chose.

    Args:
        projection, curvature: of LoGra.
        trials: settings and score of everything that was tried, on the subsets and queries it was chosen on.
        subsets, queries: numbers of those to report on, which were not looked at.
    """

    model_config = ConfigDict(frozen=True)

    projection: ProjectionConfig
    curvature: CurvatureConfig
    trials: list[dict[str, Any]]
    subsets: list[int]
    queries: list[int]


class Findings(BaseModel):
    """What an audit found, as plain values.

    Args:
        ceiling: row of the noise ceiling.
        rows: a row a method, controls last.
        n_subsets, n_queries, n_documents: that the scores are over.
    """

    model_config = ConfigDict(frozen=True)

    ceiling: dict[str, Any]
    rows: list[dict[str, Any]]
    n_subsets: int
    n_queries: int
    n_documents: int
