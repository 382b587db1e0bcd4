"""Scores of kronfluence's EK-FAC (Grosse et al. 2023), which ours are held against."""

import torch
from torch.utils.data import Dataset

__all__ = ["RowDataset", "WindowDataset", "fitted_analyzer", "kronfluence_scores", "pairwise_scores"]


class RowDataset(Dataset):
    """Rows of a table with their classes."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return self.examples.n_examples

    def __getitem__(self, number):
        return {"inputs": self.examples.inputs[number], "labels": self.examples.labels[number]}


class WindowDataset(Dataset):
    """(input_ids, labels) of windows; they are not padded, so that a batch holds one."""

    def __init__(self, windows):
        self.windows = windows

    def __len__(self):
        return len(self.windows)

    def __getitem__(self, number):
        input_ids, labels = self.windows[number]
        return {"input_ids": input_ids, "labels": labels}


def kronfluence_scores(
    folder, model, loss, train, queries, *, damping=None, dtype=None, batch_size=1, modules=None, empirical=True, seed=0
):
    """(n_queries, n_examples) scores.

    Args:
        folder: for its files.
        model: wrapped in place.
        loss: (model, batch) → the sum of the examples' losses; where labels are to be sampled, of any.
        train, queries: datasets.
        damping: lambda; None: its own heuristic, a tenth of the mean eigenvalue.
        dtype: of everything; None: its defaults.
        batch_size: examples of a pass.
        modules: names of those that are tracked; None: all it knows.
        empirical: the Fisher of the data's labels, not of sampled ones, which `loss` is then asked for by `sample`.
        seed: of torch, from which `loss` draws them.
    """
    torch.manual_seed(seed)
    of = {"dtype": dtype, "batch_size": batch_size}
    analyzer = fitted_analyzer(folder, model, loss, train, modules=modules, empirical=empirical, **of)
    return pairwise_scores(analyzer, train, queries, damping=damping, **of)


def fitted_analyzer(folder, model, loss, train, *, dtype=None, batch_size=1, modules=None, empirical=True):
    """With EK-FAC's factors; arguments as of `kronfluence_scores`."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments
    from kronfluence.task import Task

    class Loss(Task):
        def compute_train_loss(self, batch, model, sample=False):
            return loss(model, batch, sample)

        def compute_measurement(self, batch, model):
            return loss(model, batch, False)

        def get_influence_tracked_modules(self):
            return modules

    names = ("activation_covariance_dtype", "gradient_covariance_dtype", "per_sample_gradient_dtype", "lambda_dtype")
    precise = {} if dtype is None else dict.fromkeys(names, dtype)
    task = Loss()
    analyzer = Analyzer("run", prepare_model(model, task), task, cpu=True, disable_tqdm=True, output_dir=str(folder))
    arguments = FactorArguments(
        strategy="ekfac", use_empirical_fisher=empirical, eigendecomposition_dtype=torch.float64, **precise
    )
    analyzer.fit_all_factors("factors", train, per_device_batch_size=batch_size, factor_args=arguments)
    return analyzer


def pairwise_scores(analyzer, train, queries, *, damping=None, dtype=None, batch_size=1, rank=None, name="scores"):
    """(n_queries, n_examples) scores; arguments as of `kronfluence_scores`.

    Args:
        rank: that queries' gradients are cut to; None: they are whole.
        name: of the scores, which are computed once.
    """
    from kronfluence.arguments import ScoreArguments

    names = ("score_dtype", "per_sample_gradient_dtype", "precondition_dtype")
    precise = {} if dtype is None else dict.fromkeys(names, dtype)
    analyzer.compute_pairwise_scores(
        name,
        "factors",
        queries,
        train,
        per_device_query_batch_size=batch_size if rank is None else len(queries),
        per_device_train_batch_size=batch_size,
        score_args=ScoreArguments(damping_factor=damping, query_gradient_low_rank=rank, **precise),
    )
    return analyzer.load_pairwise_scores(name)["all_modules"].double().numpy()
