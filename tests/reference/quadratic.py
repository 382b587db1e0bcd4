"""Sources whose losses are quadratic, so that what a coalition would have trained is known exactly."""

import numpy as np

from dataworth.tasks.coalitions.games.expansion import QueryExpansion
from dataworth.tasks.coalitions.games.newton_steps import LayerSums

N_SOURCES, PULL = 5, 0.7


class Quadratic:
    """Sources with quadratic losses 1/2 (x - c)^T H (x - c), trained on all of them with a pull towards x_0."""

    def __init__(self, sizes=(3, 2), seed=0, duplicate=False):
        generator = np.random.default_rng(seed)
        self.curvatures, self.centres = [], []
        for size in sizes:
            halves = generator.standard_normal((N_SOURCES, size, size))
            centres = generator.standard_normal((N_SOURCES, size))
            if duplicate:
                halves[1], centres[1] = halves[0], centres[0]
            self.curvatures.append(halves @ halves.transpose(0, 2, 1))
            self.centres.append(centres)
        self.start = [generator.standard_normal(size) for size in sizes]
        everybody = np.ones(N_SOURCES, bool)
        self.trained = [self.minimum(layer, everybody) for layer in range(len(sizes))]
        d = sum(sizes)
        self.expansion = QueryExpansion(
            generator.random(2), generator.standard_normal((2, d)), generator.standard_normal((2, 3, d))
        )

    def minimum(self, layer, mask):
        h, c = self.curvatures[layer][mask], self.centres[layer][mask]
        right = np.einsum("sij,sj->i", h, c) + PULL * self.start[layer]
        return np.linalg.solve(h.sum(axis=0) + PULL * np.eye(len(right)), right)

    def layers(self):
        return [
            LayerSums(np.einsum("sij,sj->si", h, x - c), h)
            for h, c, x in zip(self.curvatures, self.centres, self.trained, strict=True)
        ]

    @property
    def origin(self):
        return [start - x for start, x in zip(self.start, self.trained, strict=True)]
