"""The games of one trained language model, from the stores that the tasks' own bodies make."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from dataworth.storage.corpus import CorpusStore
from dataworth.tasks.coalitions.config import SourcesConfig
from dataworth.tasks.coalitions.estimation.designs import all_coalitions
from dataworth.tasks.coalitions.estimation.semivalues import exact_semivalues, size_weights
from dataworth.tasks.coalitions.games.model_game import MeasuredLosses, model_sums, query_expansion
from dataworth.tasks.coalitions.games.path_values import path_values
from dataworth.tasks.coalitions.games.play import Play
from dataworth.tasks.coalitions.games.source_game import Game, NothingKept
from dataworth.tasks.coalitions.games.sums_game import game_on
from dataworth.tasks.corpus.config import CorpusConfig, QueriesConfig
from dataworth.tasks.corpus.measured_losses import query_losses
from dataworth.tasks.corpus.steps import prepare_corpus, prepare_queries
from dataworth.tasks.curvature.config import CurvatureConfig, DampingConfig
from dataworth.tasks.curvature.dense import Dense
from dataworth.tasks.curvature.steps import fit_covariances, fit_query_factors, fit_source_sums
from dataworth.tasks.gradients.config import GradientsConfig
from dataworth.tasks.gradients.steps import index_gradients
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import load
from dataworth.tasks.projection.config import ProjectionConfig
from dataworth.tasks.projection.steps import make_bases
from dataworth.tasks.training.checkpoint_ledger import ledger_of_checkpoints
from dataworth.tasks.training.config import TrainingConfig
from dataworth.tasks.training.ledger import Credits
from dataworth.tasks.training.retraining import as_it_was
from dataworth.tasks.training.training_with_ledger import ledger_of

__all__ = ["LanguageGames"]

RANK = 32


class LanguageGames:
    """The games of one trained language model, from the stores that the tasks' own bodies make.

    Args:
        model: the checkpoint; what training began from is the folder `base` in it.
        corpus, queries: files.
        sources: of the corpus, in the order of the players.
        store: folder of the stores.
        max_length: tokens of a window.
        rank: of the bases.
    """

    def __init__(
        self,
        model: Path,
        corpus: Path,
        queries: Path,
        sources: Sequence[str],
        store: Path,
        max_length: int = 256,
        rank: int = RANK,
    ) -> None:
        self.sources, self.masks = sources, all_coalitions(len(sources))
        self.model = ModelConfig(name=str(model), base=str(model / "base"), device="cpu")
        self.store = str(store)
        self.curvature = CurvatureConfig(draws=4)
        files = CorpusConfig(files=[str(corpus)], max_length=max_length)
        self.corpus = prepare_corpus(self.store, self.model, files)
        self.queries = prepare_queries(self.store, self.model, QueriesConfig(file=str(queries)))
        self.documents = CorpusStore.open(self.queries)
        covariances = fit_covariances(self.store, self.model, self.corpus, self.curvature, None)
        self.bases = make_bases(self.store, self.model, ProjectionConfig(kind="pca", rank=rank), covariances)
        self.play, self.plain = self._played(self.model), self._played(self.model.model_copy(update={"base": None}))

    def _played(self, model: ModelConfig) -> Play:
        store, bases, precise = self.store, self.bases, GradientsConfig(dtype="float32")
        gradients = index_gradients(store, model, self.corpus, bases, precise, "the corpus")
        asked = index_gradients(store, model, self.queries, bases, precise, "the queries")
        factors = fit_query_factors(store, model, self.queries, bases, self.curvature)
        refs = fit_source_sums(store, model, self.corpus, bases, gradients, self.curvature, None, n_groups=1)
        sums = model_sums([refs[name] for name in self.sources], bases, model, None, DampingConfig())
        base = None if model.base is None else query_losses(load(model, 1.0), self.documents)
        loaded = load(model)
        expansion = query_expansion(sums, self.documents, asked, factors, query_losses(loaded, self.documents))
        return Play(sums, expansion, MeasuredLosses(model, bases, self.queries), base)

    def by_size(self) -> np.ndarray:
        """(q, s) tokens of each source, the same for every query."""
        corpus = CorpusStore.open(self.corpus)
        tokens, of = corpus.column("n_tokens").to_numpy(), np.asarray(corpus.column("source").to_pylist())
        sizes = np.array([tokens[of == name].sum() for name in self.sources], np.float64)
        return np.tile(sizes, (self.documents.n_examples, 1))

    def additive(self) -> np.ndarray:
        """(q, s) sums of scores, as the flow computes them: the mean curvature at theta*, relative damping."""
        n_examples = CorpusStore.open(self.corpus).n_examples
        solved = [
            Dense(layer.curvatures.sum(axis=0) / n_examples).damped(DampingConfig()).applied(layer.gradients)
            for layer in self.plain.sums.layers
        ]
        found: np.ndarray = self.plain.expansion.gradients @ np.concatenate(solved, axis=1).T / n_examples
        return found

    def values(self, whole: Play, game: str, utility: str = "quadratic") -> np.ndarray:
        """(q, s) values of a game from all coalitions, or along the path."""
        if game == "path":
            return path_values(whole.sums.layers, whole.sums.damping, whole.expansion)
        utilities = self.game(whole, game, utility).utilities(self.masks)
        return exact_semivalues(self.masks, utilities, size_weights(len(self.sources), "shapley"))

    def game(self, whole: Play, game: str, utility: str = "quadratic") -> Game:
        """A game of coalitions."""
        config = SourcesConfig(game=game, utility=utility)  # type: ignore[arg-type]
        return game_on(whole, config, NothingKept()).game()

    def ledger(self, training: TrainingConfig, adapters: LoraConfig | None = None) -> Credits:
        """What each source took off each query in one more training, of all weights or of adapters."""
        corpus, base = CorpusStore.open(self.corpus), load(self.model, 1.0)
        names = corpus.column("source").to_pylist()
        owners = np.array([self.sources.index(name) for name in names])[corpus.windows["document"]]
        torch.manual_seed(training.seed)
        adapted = None if adapters is None else get_peft_model(base.model, adapters)
        model = base if adapted is None else replace(base, model=adapted)
        with as_it_was(model):
            made = ledger_of(model, corpus, np.arange(len(owners)), owners, len(self.sources), self.documents, training)
        if adapted is not None:
            adapted.unload()  # type: ignore[operator]  # of peft
        return made

    def checkpoint_ledger(self, checkpoints: Sequence[Path], training: TrainingConfig) -> Credits:
        """What each source took off each query, by checkpoints between base and model."""
        corpus = CorpusStore.open(self.corpus)
        names = corpus.column("source").to_pylist()
        owners = np.array([self.sources.index(name) for name in names])[corpus.windows["document"]]
        points = [self.model.model_copy(update={"name": str(folder)}) for folder in checkpoints]
        windows, n_players = np.arange(len(owners)), len(self.sources)
        return ledger_of_checkpoints(
            [*points, self.model], corpus, windows, owners, n_players, self.documents, training
        )

    def named(self) -> dict[str, Callable[[], np.ndarray]]:
        """The games of the table."""
        return {
            "by size": self.by_size,
            "additive": self.additive,
            "interaction": lambda: self.values(self.plain, "interaction"),
            "newton, quadratic": lambda: self.values(self.play, "newton"),
            "newton, evaluated": lambda: self.values(self.play, "newton", "evaluated"),
            "newton, evaluated, no base": lambda: self.values(self.plain, "newton", "evaluated"),
            "path": lambda: self.values(self.play, "path"),
        }
