"""Sources whose documents are drawn from known populations, so that the games of the populations are known too."""

import numpy as np

from dataworth.tasks.coalitions.games.expansion import QueryExpansion
from dataworth.tasks.coalitions.games.groups import SourceGroups
from dataworth.tasks.coalitions.games.model_game import ModelSums
from dataworth.tasks.coalitions.games.newton_steps import LayerSums, endpoint_matched
from dataworth.tasks.coalitions.games.play import Play

__all__ = ["DrawnSources"]

SIZES, N_SOURCES, N_QUERIES = (4, 2), 3, 2
PULL = 12.0


class DrawnSources:
    """Populations of three sources over two layers, and a quadratic query.

    A document has a Gaussian gradient and the curvature x x^T of a Gaussian x; gradients of a source have a mean.
    """

    def __init__(self, generator, n_documents):
        self.n_documents = n_documents
        k = sum(SIZES)
        self.means = [generator.standard_normal((N_SOURCES, size)) * 0.5 for size in SIZES]
        self.roots = [generator.standard_normal((N_SOURCES, size, size)) / np.sqrt(size) for size in SIZES]
        self.origin = [generator.standard_normal(size) * 0.3 for size in SIZES]
        self.expansion = QueryExpansion(
            generator.random(N_QUERIES),
            generator.standard_normal((N_QUERIES, k)),
            generator.standard_normal((N_QUERIES, 3, k)) * 0.7,
        )

    def documents(self, generator):
        """(gradients (s, n, k), rows (s, n, k)) of each layer."""
        shape = (N_SOURCES, self.n_documents)
        return [
            (
                mean[:, None] + generator.standard_normal((*shape, mean.shape[1])),
                generator.standard_normal((*shape, mean.shape[1])) @ root,
            )
            for mean, root in zip(self.means, self.roots, strict=True)
        ]

    def play(self, layers, groups=None):
        """The game of sums that are not endpoint-matched yet."""
        columns = [slice(0, SIZES[0]), slice(SIZES[0], sum(SIZES))]
        sums = ModelSums(self.matched(layers), PULL, "given", None, [None, None], columns, groups)
        return Play(sums, self.expansion, self.expansion.after, None)

    def matched(self, layers):
        return endpoint_matched(layers, self.origin, np.full(N_SOURCES, self.n_documents), PULL)

    def of_population(self):
        """The game of the populations' sums."""
        return self.play(
            [
                LayerSums(self.n_documents * mean, self.n_documents * root.transpose(0, 2, 1) @ root)
                for mean, root in zip(self.means, self.roots, strict=True)
            ]
        )

    def of_documents(self, documents, n_groups, curvature_groups=None):
        """The game of drawn documents, of which number n is in group n mod G."""
        numbers = np.arange(self.n_documents) % n_groups
        counts = np.tile(np.bincount(numbers, minlength=n_groups), (N_SOURCES, 1))

        def summed(chosen):
            return [
                LayerSums(gradients[:, chosen].sum(axis=1), rows[:, chosen].transpose(0, 2, 1) @ rows[:, chosen])
                for gradients, rows in documents
            ]

        whole = summed(numbers >= 0)
        groups = SourceGroups(counts, counts, whole, lambda number: summed(numbers == number), self.matched)
        return self.play(whole, groups)
