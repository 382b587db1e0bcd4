"""Every method by its name, set up as a careful practitioner would before seeing any outcome."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dataworth.storage.spelling import setting
from dataworth.tasks.attribution.arnoldi import ArnoldiInfluence
from dataworth.tasks.attribution.attributor import Attributor
from dataworth.tasks.attribution.baselines import EmbeddingSimilarity, RandomScores, TargetCount
from dataworth.tasks.attribution.datainf import DataInf
from dataworth.tasks.attribution.iterative import CGInfluence, LiSSAInfluence
from dataworth.tasks.attribution.logra import LoGra
from dataworth.tasks.attribution.replayed import RecipeOf, ReplayedTraining
from dataworth.tasks.attribution.retrained import LeaveOneOut, Outcome, TruncatedMonteCarloShapley
from dataworth.tasks.attribution.tracin import TracIn
from dataworth.tasks.attribution.trak import TRAK
from dataworth.tasks.curvature.config import CurvatureConfig, DampingConfig
from dataworth.tasks.projection.config import ProjectionConfig

__all__ = ["MethodSettings", "attributor", "lacking", "recommended"]

# With every class and its probability a dense Fisher is known exactly, and ranks from 32 on gain little. Of a language
# model it is known by a few drawn labels an example, fewer than a dense matrix has columns: there EK-FAC, whose
# eigenvalues need few, does better, the more so the more directions it keeps and the less they are damped. Chosen on
# the demo's audit and the character model of tests/reference/lessons.py: on both a hundredth of the mean eigenvalue is
# ahead of a tenth, and less gains little; on the demo's, 256 directions a side are ahead of 128.
CLASSIFIER_RANK = 32
LANGUAGE_RANK = 256
LANGUAGE_RATIO = 0.01
PERMUTATIONS = 8
NEED_DAMPING = ("cg", "lissa")
KRYLOV_PASSES, KRYLOV_PAIRS = 30, 15

Kind = Literal["random", "pca", "mask", "factgrass", "identity"]
Fitted = Literal["fisher", "kfac", "ekfac"]


@dataclass(frozen=True)
class MethodSettings:
    """What the set-up of methods depends on.

    Args:
        projection, curvature: of the run: `configured` is LoGra with them, and other methods take their rank, seeds
            and damping from them.
        classifies: the model is a classifier with a few classes.
        weight_decay: of the mean loss over examples, where training had one.
        n_examples: training examples.
        outcome: trains again and says the queries' losses, for the methods that need it.
        seed: of random scores and orders.
        recipe: of the training by the seed of its order, for `replay`; None: the problem tells none.
        seeds: orders whose mean `replay` takes.
    """

    projection: ProjectionConfig
    curvature: CurvatureConfig
    classifies: bool
    weight_decay: float | None
    n_examples: int
    outcome: Outcome
    seed: int
    recipe: RecipeOf | None = None
    seeds: int = 1


def recommended(settings: MethodSettings) -> tuple[ProjectionConfig, CurvatureConfig]:
    """Projection and curvature to take without an audit.

    PCA bases. Of a classifier the dense Fisher, an expectation over all classes; of a language model EK-FAC with labels
    drawn from its own predictions. Damping by the weight decay of training where the loss has one, which is what the
    damping stands for (a minimum of the loss with decay), else by a share of the mean eigenvalue that carries mass: a
    tenth, of a language model's EK-FAC a hundredth.
    """
    if settings.classifies:
        return ProjectionConfig(kind="pca", rank=CLASSIFIER_RANK), _curvature("fisher", settings)
    return ProjectionConfig(kind="pca", rank=LANGUAGE_RANK), _curvature("ekfac", settings)


def _curvature(kind: Fitted, settings: MethodSettings) -> CurvatureConfig:
    """With the labels and the damping that are recommended."""
    damping = DampingConfig()
    if settings.weight_decay:
        damping = DampingConfig(rule="absolute", value=settings.weight_decay)
    elif kind == "ekfac" and not settings.classifies:
        damping = DampingConfig(value=LANGUAGE_RATIO)
    labels: Literal["exact", "sampled"] = "exact" if settings.classifies else "sampled"
    return CurvatureConfig(kind=kind, labels=labels, seed=settings.curvature.seed, damping=damping)


def attributor(name: str, settings: MethodSettings) -> Attributor:
    """A method by its name.

    Raises:
        ValueError: no such method, or its settings lack what it needs.
    """
    if name not in _MAKERS:
        raise ValueError(f"no method {name!r}; known: {', '.join(_MAKERS)}")
    lacks = lacking(name, settings.weight_decay, settings.curvature, has_recipe=settings.recipe is not None)
    if lacks:
        raise ValueError(f"{name}: {lacks}")
    return _MAKERS[name](settings)


def _recommended(settings: MethodSettings) -> LoGra:
    return LoGra(*recommended(settings))


def _logra(kind: Kind, curvature: Fitted = "fisher") -> Callable[[MethodSettings], LoGra]:
    """With the damping and labels that are recommended, at the run's rank."""

    def make(settings: MethodSettings) -> LoGra:
        projection = ProjectionConfig(kind=kind, rank=settings.projection.rank, seed=settings.projection.seed)
        return LoGra(projection, _curvature(curvature, settings))

    return make


def _plain(kind: Literal["dot", "cosine"]) -> Callable[[MethodSettings], LoGra]:
    def make(_: MethodSettings) -> LoGra:
        return LoGra(ProjectionConfig(kind="identity"), CurvatureConfig(kind="none"), kind)

    return make


def _relative(kind: Literal["relative", "theta_relative"]) -> Callable[[MethodSettings], LoGra]:
    def make(settings: MethodSettings) -> LoGra:
        return LoGra(*recommended(settings), kind)

    return make


def lacking(name: str, weight_decay: float | None, curvature: CurvatureConfig, *, has_recipe: bool) -> str:
    """What a method lacks to be used; nothing where it can be.

    Args:
        name: of the method.
        weight_decay: of the mean loss over examples, where training had one.
        curvature: of the run.
        has_recipe: the problem tells the recipe of its training.
    """
    if name == "replay" and not has_recipe:
        return "it goes back through the training, of which this problem tells no recipe"
    if name in NEED_DAMPING and not weight_decay and curvature.damping.rule != "absolute":
        return f"it needs a damping in numbers: pass {setting('curvature.damping.rule')} absolute and a value"
    return ""


def _replayed(settings: MethodSettings) -> ReplayedTraining:
    assert settings.recipe is not None
    return ReplayedTraining(settings.recipe, range(settings.seeds))


def _damping(settings: MethodSettings) -> float:
    """Of methods that know no eigenvalues to take a share of."""
    return settings.weight_decay or settings.curvature.damping.value


_MAKERS: dict[str, Callable[[MethodSettings], Attributor]] = {
    "recommended": _recommended,
    "configured": lambda settings: LoGra(settings.projection, settings.curvature),
    "logra-random": _logra("random"),
    "logra-pca": _logra("pca"),
    "logra-mask": _logra("mask"),
    "logra-factgrass": _logra("factgrass"),
    "gauss-newton": _logra("identity"),
    "ekfac": _logra("identity", "ekfac"),
    "kfac": _logra("identity", "kfac"),
    "dot": _plain("dot"),
    "cosine": _plain("cosine"),
    "relatif": _relative("relative"),
    "theta-relatif": _relative("theta_relative"),
    "tracin": lambda settings: TracIn(),
    # Half as many dimensions as examples: with as many the regression is singular (Park et al. 2023, appendix).
    "trak": lambda settings: TRAK(max(1, min(2048, settings.n_examples // 2)), seed=settings.seed),
    "datainf": lambda settings: DataInf(),
    "cg": lambda settings: CGInfluence(_damping(settings)),
    "lissa": lambda settings: LiSSAInfluence(_damping(settings)),
    "arnoldi": lambda settings: ArnoldiInfluence(KRYLOV_PASSES, KRYLOV_PAIRS, seed=settings.seed),
    "replay": _replayed,
    "leave-one-out": lambda settings: LeaveOneOut(settings.outcome),
    "tmc-shapley": lambda settings: TruncatedMonteCarloShapley(settings.outcome, PERMUTATIONS, 0.05, settings.seed),
    "embedding": lambda settings: EmbeddingSimilarity(),
    "size": lambda settings: TargetCount(),
    "random": lambda settings: RandomScores(settings.seed),
}
