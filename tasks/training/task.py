"""The steps of the room as Prefect tasks."""

from dataworth.tasks.training import candidates, steps
from dataworth.tasks.wrapping import as_task

__all__ = ["replay_training", "train_on_candidates", "train_small_model"]

train_small_model = as_task(steps.train_small_model, name="train-model", run_name="train a small model", retried=False)
replay_training = as_task(
    steps.replay_training, name="replay-training", run_name="go back through the training", on_device=True
)
train_on_candidates = as_task(
    candidates.train_on_candidates,
    name="train-on-candidates",
    run_name="train the model on each candidate alone",
    on_device=True,
)
