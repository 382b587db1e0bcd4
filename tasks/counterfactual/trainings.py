"""Losses after training again, kept training by training: none is done twice, and a stopped audit goes on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from dataworth.storage.coalitions import UtilityStore
from dataworth.storage.locations import StoreFolders
from dataworth.storage.ref import fingerprint
from dataworth.tasks.cluster import dask_client, windowed
from dataworth.tasks.configuration import ClusterConfig
from dataworth.tasks.counterfactual.problem import ProblemPlace
from dataworth.tasks.progress import progress, run_logger

__all__ = ["Outcomes"]

# Trainings on the cluster or waiting there, for each of its threads.
TRAININGS_AHEAD = 2


class Outcomes:
    """What training a problem again on some documents did to its queries.

    Args:
        store: root of the stores.
        place: of the problem.
        seeds: of the trainings.
        cluster: where they run.
    """

    def __init__(self, store: str, place: ProblemPlace, seeds: Sequence[int], cluster: ClusterConfig) -> None:
        problem = place.opened()
        self._place, self._seeds, self._cluster = place, list(seeds), cluster
        self._n_documents, self._n_queries = problem.examples.n_documents, problem.queries.n_examples
        root = StoreFolders(store).games
        self._stores = []
        for seed in self._seeds:
            attributes = {"kind": "outcomes", "problem": problem.fingerprint, "title": problem.title, "seed": seed}
            attributes["corpus"] = problem.contents
            name = fingerprint({"outcomes": 1, "problem": problem.fingerprint, "seed": seed})
            self._stores.append(UtilityStore.create(root, name, attributes))

    def measured(self, masks: Bool[np.ndarray, "m n"]) -> Float[np.ndarray, "r q m"]:
        """Minus the losses in nats, by seed; what was never trained is trained.

        Raises:
            DataworthError: the cluster was lost; what was finished is kept.
        """
        known = [self._known(store) for store in self._stores]
        missing = [
            (number, mask)
            for mask in dict.fromkeys(_key(mask) for mask in masks)
            for number, by_mask in enumerate(known)
            if mask not in by_mask
        ]
        if missing:
            run_logger().info("%s of %s trainings to do", len(missing), len(self._seeds) * len(masks))
            self._train(missing)
            known = [self._known(store) for store in self._stores]
        return np.array([[by_mask[_key(mask)] for mask in masks] for by_mask in known]).transpose(0, 2, 1)

    def mean_losses(self, masks: Bool[np.ndarray, "m n"]) -> Float[np.ndarray, "m q"]:
        """Mean over the seeds of the losses, for methods that train again."""
        losses: np.ndarray = -self.measured(masks).mean(axis=0).T
        return losses

    def _known(self, store: UtilityStore) -> dict[bytes, np.ndarray]:
        masks, utilities = store.known(self._n_documents, self._n_queries)
        return dict(zip(map(_key, masks), utilities, strict=True))

    def _train(self, missing: Sequence[tuple[int, bytes]]) -> None:
        with (
            dask_client(self._cluster, len(missing)) as client,
            progress("trainings", len(missing), "training") as bar,
        ):

            def submit(work: tuple[int, bytes], held: Sequence[Any]) -> Any:
                return client.submit(_trained, self._place, self._mask(work[1]), self._seeds[work[0]], pure=False)

            n_ahead = TRAININGS_AHEAD * max(1, sum(client.nthreads().values()))
            for (number, mask), losses in windowed(client, "training again", missing, submit, n_ahead, ordered=False):
                self._stores[number].add(self._mask(mask)[None], -losses[None])
                bar.advance()

    def _mask(self, mask: bytes) -> np.ndarray:
        return np.unpackbits(np.frombuffer(mask, np.uint8), count=self._n_documents).astype(bool)


def _key(mask: np.ndarray) -> bytes:
    return np.packbits(np.asarray(mask, bool)).tobytes()


def _trained(place: ProblemPlace, members: np.ndarray, seed: int) -> np.ndarray:
    """One training on one thread, so that it comes to the same whatever else the machine does."""
    torch.set_num_threads(1)
    return place.opened().losses_after(members, seed)
