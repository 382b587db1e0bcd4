"""The configuration of a run, composed of that of each package; the same for files, command line, form and MLflow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dataworth.storage.spelling import setting
from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.registry import GAMES
from dataworth.tasks.configuration import ClusterConfig, Configuration, Names
from dataworth.tasks.corpus.config import COPY_OF, OWNERS, CandidatesConfig, CorpusConfig, QueriesConfig
from dataworth.tasks.corpus.groups import SOURCE, grouping_fields
from dataworth.tasks.counterfactual.config import AuditConfig
from dataworth.tasks.curvature.config import CurvatureConfig
from dataworth.tasks.gradients.config import GradientsConfig
from dataworth.tasks.model.adapter_folders import is_adapter
from dataworth.tasks.model.config import ModelsConfig
from dataworth.tasks.projection.config import ProjectionConfig
from dataworth.tasks.report.config import TrackingConfig
from dataworth.tasks.scoring.config import ScoringConfig
from dataworth.tasks.training.config import TrainingConfig

__all__ = [
    "AuditRunConfig",
    "CorpusRunConfig",
    "DemoConfig",
    "DoctorConfig",
    "EventsConfig",
    "Overlap",
    "PublishConfig",
    "SearchConfig",
    "ValueConfig",
    "run_title",
]

STORE = (
    "Folder of the stores, or s3://bucket/prefix, reused by later runs; "
    "default: $DATAWORTH_HOME/store, else ~/.dataworth/store."
)

Overlap = Literal["wait", "skip", "refuse"]
OVERLAP = "Where another run with the same parameters is under way, or is writing the same store: wait, skip or refuse."


class EventsConfig(Configuration):
    """Events that an automation of Prefect can hang on."""

    share_moved: float = Field(
        0.05, ge=0, le=1, description="A source's share that moves by more since the last valuation in `results`."
    )


class CorpusRunConfig(Configuration):
    """Parameters of `index-corpus` and `fit-curvature`."""

    model: ModelsConfig = Field(description="The model, at one checkpoint or several.")
    corpus: CorpusConfig = Field(description="The documents.")
    projection: ProjectionConfig = Field(default_factory=ProjectionConfig, description="Projection of gradients.")
    curvature: CurvatureConfig = Field(default_factory=CurvatureConfig, description="Curvature of the training loss.")
    gradients: GradientsConfig = Field(default_factory=GradientsConfig, description="Computing and storing gradients.")
    store: Annotated[str | None, Names.PLACE] = Field(None, min_length=1, description=STORE)
    overlap: Overlap = Field("wait", description=OVERLAP)

    @property
    def by_checkpoint(self) -> list[Self]:
        """The same run once for each checkpoint, in the given order."""
        models = [self.model.model_copy(update={"name": [name]}) for name in self.model.name]
        return [self.model_copy(update={"model": model}) for model in models]


class ValueConfig(CorpusRunConfig):
    """Parameters of `value-corpus`."""

    queries: QueriesConfig = Field(description="What is explained.")
    results: Annotated[str, Names.PLACE] = Field(
        min_length=1, description="Folder for the valuation; an earlier one there is replaced."
    )
    candidates: CandidatesConfig = Field(
        default_factory=CandidatesConfig, description="Documents that the model was not trained on."
    )
    method: Literal["influence", "replay"] = Field(
        "influence",
        description="Scores of documents: influence: what the model's gradients tell; replay: what its training "
        "tells, gone back through from --model.base as --training says.",
    )
    orders: int = Field(
        1, ge=1, le=1000, description="Trainings, each in another order, whose mean a replay takes: more tell better."
    )
    scoring: ScoringConfig = Field(default_factory=ScoringConfig, description="Scores of documents.")
    sources: SourcesConfig = Field(default_factory=SourcesConfig, description="Values of sources.")
    certify: int = Field(
        0,
        ge=0,
        le=100_000,
        description="Train --model.base again without some documents, so often (the top source, the best documents of "
        "queries, random ones), and say how well the scores predicted what that does; 10 tell an interval of 90 %; 0: "
        "nothing is certified.",
    )
    tracking: TrackingConfig = Field(default_factory=TrackingConfig, description="The MLflow run.")
    training: TrainingConfig | None = Field(
        None,
        description="How the model was trained from --model.base, and how that is trained again, where it is. None: "
        "not known, the defaults.",
    )
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="The Dask cluster.")
    events: EventsConfig = Field(default_factory=EventsConfig, description="Events for automations.")

    @property
    def has_points(self) -> bool:
        """Are gradients taken at the base as well as of the model? Where adapters begin, half of them have none."""
        return self.model.point in ("auto", "both") and self._may_have_points

    @property
    def _may_have_points(self) -> bool:
        return (
            self.model.base is not None
            and len(self.model.name) == 1
            and not is_adapter(self.model.name[0])
            and self.method == "influence"
            and self.sources.game == "additive"
            and self.sources.projection_seeds == 1
            and not self._narrowed
            and self.scoring.kind == "dot"
            and not self.certify  # which tries the scores of the model
            and not self.sources.trainings  # which are kept with them, whatever the game
        )

    @model_validator(mode="after")
    def _playable(self) -> "ValueConfig":
        entry = GAMES.get(self.sources.game)
        trained = entry is not None and entry.made_of == "trainings"
        if entry is not None and entry.made_of != "scores" and self._narrowed:
            raise ValueError(
                f"the game {self.sources.game} is over all sources and layers: leave --scoring.sources, "
                "--scoring.without_sources and --scoring.layers out, or pass --game additive"
            )
        if self.sources.projection_seeds > 1 and (self.projection.kind in ("pca", "identity") or self.projection.bases):
            raise ValueError(
                "--sources.projection_seeds: only random, mask and factgrass projections made here have a seed; leave "
                "it out, or pass --projection.kind random"
            )
        if self.sources.document_values and self.sources.projection_seeds > 1:
            raise ValueError("--sources.document_values: are of one projection: leave --sources.projection_seeds out")
        game = self.sources.game
        if self.model.point == "base":
            raise ValueError("--model.point base: is of index and fit; a valuation takes the model, too: pass both")
        if self.model.point == "both" and not self._may_have_points:
            raise ValueError(
                "--model.point both: is of one checkpoint, no adapters, with --model.base, under one projection, all "
                "of its documents and layers scored by gradients, as dot, not certified by trainings, and summed: pass "
                "--game additive"
            )
        self._keepable()
        self._addable()
        self._correctable()
        self._certifiable()
        self._replayable()
        if trained and self.sources.projection_seeds > 1:
            raise ValueError(f"the game {game} has no projection: leave --sources.projection_seeds out")
        if self.sources.checkpoints:
            self._on_the_way()
        if trained and not self.model.has_base:
            raise ValueError(f"the game {game} begins every training from the base: pass --model.base")
        if trained and len(self.model.name) > 1:
            raise ValueError(f"the game {game} is played from --model.base, not from checkpoints: pass one --model")
        return self

    def _on_the_way(self) -> None:
        option = setting("sources.checkpoints")
        if not self.model.has_base:
            raise ValueError(f"{option}: the way begins at the base: pass {setting('model.base')}")
        if len(self.model.name) > 1:
            raise ValueError(f"{option}: the way ends at one model: pass one {setting('model.name')}")
        if self.sources.projection_seeds > 1 or self._narrowed:
            raise ValueError(
                f"{option}: the way is of all sources and weights, without a projection: leave "
                f"{setting('sources.projection_seeds')} and what narrows {setting('scoring')} out"
            )

    def _keepable(self) -> None:
        option = f"{setting('gradients.keep')} none"
        if self.gradients.keep != "none":
            return
        if self.method != "influence" or self.scoring.kind != "dot" or self.scoring.by_layer or self.scoring.layers:
            raise ValueError(
                f"{option}: scores alone are kept, of all layers, as dot: leave {setting('method')}, "
                f"{setting('scoring.kind')}, {setting('scoring.by_layer')} and {setting('scoring.layers')} out"
            )
        if self.gradients.query_error and self.curvature.kind not in ("kfac", "ekfac"):
            raise ValueError(
                f"{setting('gradients.query_error')}: what is lost is told by a curvature of two sides: pass "
                f"{setting('curvature.kind')} ekfac, or leave it out"
            )
        if self.projection.kind == "factgrass":
            raise ValueError(f"{option}: needs both sides of a layer apart: pass another {setting('projection.kind')}")
        if self.model.shard:
            raise ValueError(
                f"{option}: not of a model spread over several processes: leave {setting('model.shard')} out"
            )
        entry = GAMES.get(self.sources.game)
        if entry is not None and entry.made_of == "sums":
            raise ValueError(
                f"{option}: the game {self.sources.game} is made of gradients: pass {setting('sources.game')} additive"
            )

    def _addable(self) -> None:
        option = setting("candidates.files")
        if not self.candidates.files:
            if self.candidates.epochs:
                raise ValueError(f"{setting('candidates.epochs')}: are of documents to train on: pass {option}")
            return
        if self.method != "influence" or self.scoring.kind != "dot":
            raise ValueError(
                f"{option}: what documents would add is told by the model's gradients, as dot: leave "
                f"{setting('method')} and {setting('scoring.kind')} out"
            )
        if self.candidates.epochs and self.model.shard:
            raise ValueError(
                f"{setting('candidates.epochs')}: a model spread over several processes cannot be trained yet: leave "
                f"{setting('model.shard')} out"
            )

    def _correctable(self) -> None:
        sources, option = self.sources, setting("sources.trainings")
        if not sources.trainings:
            return
        if not self.model.has_base:
            raise ValueError(f"{option}: every training begins from the base: pass {setting('model.base')}")
        if len(self.model.name) > 1 or sources.projection_seeds > 1:
            raise ValueError(f"{option}: values are of one model and one projection")
        if self._narrowed:
            raise ValueError(f"{option}: trainings are on whole sources: leave {setting('scoring.sources')} out")

    def _replayable(self) -> None:
        option = f"{setting('method')} replay"
        if self.method != "replay":
            if self.orders > 1:
                raise ValueError(f"{setting('orders')}: are of a replay: pass {option}")
            return
        if not self.model.has_base:
            raise ValueError(f"{option}: the training begins from the base: pass {setting('model.base')}")
        if len(self.model.name) > 1:
            raise ValueError(f"{option}: goes back through the training of one model: pass one {setting('model.name')}")
        if self.scoring.kind != "dot" or self.scoring.by_layer or self.scoring.layers:
            raise ValueError(
                f"{option}: a training tells of no layers and no lengths: leave {setting('scoring.kind')}, "
                f"{setting('scoring.by_layer')} and {setting('scoring.layers')} out"
            )
        if self.sources.projection_seeds > 1:
            raise ValueError(f"{option}: has no projection: leave {setting('sources.projection_seeds')} out")

    def _certifiable(self) -> None:
        option = setting("certify")
        if not self.certify:
            return
        if not self.model.has_base:
            raise ValueError(f"{option}: every training begins from the base: pass {setting('model.base')}")
        if len(self.model.name) > 1:
            raise ValueError(f"{option}: scores are certified of one model: pass one {setting('model.name')}")
        if self.curvature.kind == "none" and self.method == "influence":
            raise ValueError(
                f"{option}: scores have no unit without a curvature: leave {setting('curvature.kind')} out"
            )
        if self._narrowed or self.scoring.kind != "dot":
            raise ValueError(
                f"{option}: scores of all sources and layers are certified, and as dot: leave {setting('scoring')} out"
            )

    @property
    def _narrowed(self) -> bool:
        return bool(self.scoring.sources or self.scoring.without_sources or self.scoring.layers)

    @property
    def recipe(self) -> TrainingConfig:
        """How the base is trained again."""
        return self.training or TrainingConfig()

    def settled(self, classifies: bool) -> "ValueConfig":
        """A copy that names the game `auto` stands for, and whose corpus keeps every field that `sources.by` names.

        Args:
            classifies: the model is a classifier. On those newton was nearer to the truth than adding up scores. On
                language models it was not; where their training can be repeated merged was (infra/docs/truth.md).
        """
        named = [name for grouping in self.sources.by for name in grouping_fields(grouping) if name != SOURCE]
        if self.corpus.near_copies is not None:
            named = [name for name in named if name not in (OWNERS, COPY_OF)]
        fields = list(dict.fromkeys([*self.corpus.fields, *named]))
        corpus = self.corpus.model_copy(update={"fields": fields})
        return self.model_copy(update={"corpus": corpus, "sources": self._sources(classifies)})

    def _sources(self, classifies: bool) -> SourcesConfig:
        if self.sources.game != "auto":
            return self.sources
        if self.sources.checkpoints:
            return self.sources.model_copy(update={"game": "ledger"})
        playable = self.model.has_base and not self._narrowed
        game = "additive"
        has_gradients = self.projection.kind != "factgrass" and self.gradients.keep == "rows"
        if classifies and self.model.base is not None and playable and has_gradients:
            game = "newton"
        elif not classifies and playable and self._trainable:
            game = "merged"
        settled = {"game": game}
        if GAMES[game].made_of == "trainings":  # which have no such error
            settled["document_groups"] = SourcesConfig.model_fields["document_groups"].default
        return self.sources.model_copy(update=settled)

    @property
    def _trainable(self) -> bool:
        """Is it said how one model was trained, whose values nothing measures anyway?"""
        one = len(self.model.name) == 1 and self.sources.projection_seeds == 1 and not self.model.shard
        return self.training is not None and one and not self.sources.trainings


class AuditRunConfig(Configuration):
    """Parameters of `audit-valuation`."""

    results: Annotated[str, Names.PLACE] = Field(
        min_length=1, description="Folder for the audit; an earlier one there is replaced."
    )
    audit: AuditConfig = Field(default_factory=AuditConfig, description="What is trained again, and which methods.")
    model: ModelsConfig | None = Field(None, description="The model; none for a problem that audit.problem names.")
    corpus: CorpusConfig | None = Field(None, description="The documents it was trained on.")
    queries: QueriesConfig | None = Field(None, description="What is explained.")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="How it was trained, from its base.")
    projection: ProjectionConfig = Field(default_factory=ProjectionConfig, description="Of the configured method.")
    curvature: CurvatureConfig = Field(default_factory=CurvatureConfig, description="Of the configured method.")
    store: Annotated[str | None, Names.PLACE] = Field(None, min_length=1, description=STORE)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig, description="The MLflow run.")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="The Dask cluster of the trainings.")
    overlap: Overlap = Field("wait", description="Where another audit into `results` is under way: wait, skip, refuse.")

    @model_validator(mode="after")
    def _trainable(self) -> "AuditRunConfig":
        given = {"--model": self.model, "--corpus": self.corpus, "--queries": self.queries}
        if self.audit.problem is not None:
            named = [name for name, part in given.items() if part is not None]
            if named:
                raise ValueError(
                    f"--audit.problem {self.audit.problem} brings its own: leave {' and '.join(named)} out"
                )
            return self
        missing = [name for name, part in given.items() if part is None]
        if missing:
            raise ValueError(f"{' and '.join(missing)} is required, or --audit.problem digits, demo or MODULE:FUNCTION")
        if self.model is not None and not self.model.has_base:
            raise ValueError("an audit trains again from where training began: pass --model.base")
        return self


class SearchConfig(CorpusRunConfig):
    """Parameters of a search."""

    query: str = Field(min_length=1, description="A prompt whose completion is explained.")
    completion: str | None = Field(None, min_length=1, description="What follows it; default: what the model says.")
    max_new_tokens: int = Field(64, ge=1, le=4096, description="Most tokens the model may say.")
    count: int = Field(10, ge=1, le=1000, description="Documents to find.")
    sketch: int = Field(1024, ge=16, le=1024, description="Columns of the sketch that is searched first.")


class PublishConfig(Configuration):
    """Parameters of logging a valuation once more; what is not given is as the valuation had it."""

    results: Annotated[str, Names.PLACE] = Field(min_length=1, description="Folder of a valuation.")
    tracking: TrackingConfig = Field(default_factory=TrackingConfig, description="The MLflow run.")


class DemoConfig(Configuration):
    """Parameters of `demo`."""

    results: Annotated[str, Names.PLACE] = Field(
        "dataworth-demo", min_length=1, description="Folder for corpus, model and valuation."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the held-out passages, the model and its training.")
    epochs: int = Field(7, ge=1, le=100, description="Passes of the training over the corpus; fewer are faster.")
    documents: int | None = Field(None, ge=200, description="Most documents, of all sources; fewer are faster.")


class DoctorConfig(Configuration):
    """Parameters of `doctor`."""

    model: ModelsConfig | None = Field(None, description="A model to look at: a minute at most.")
    corpus: CorpusConfig | None = Field(None, description="Its documents, of which the first are looked at.")

    @model_validator(mode="after")
    def _read_by_a_model(self) -> "DoctorConfig":
        if self.corpus is not None and self.model is None:
            raise ValueError("--corpus is looked at as a model reads it: pass --model, too")
        return self


def run_title(models: Sequence[str], files: Sequence[str]) -> str:
    """Model and corpus, as a person names them; of several checkpoints, how many."""
    named = ", ".join(Path(name).name for name in models)
    model = named if len(models) == 1 else f"{len(models)} checkpoints ({named})"
    return f"{model} on {', '.join(Path(name).name for name in files)}"
