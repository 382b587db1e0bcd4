"""The steps of the room as Prefect tasks."""

from dataworth.tasks.training import steps
from dataworth.tasks.wrapping import as_task

__all__ = ["replay_training", "train_small_model"]

train_small_model = as_task(steps.train_small_model, name="train-model", run_name="train a small model", retried=False)
replay_training = as_task(
    steps.replay_training, name="replay-training", run_name="go back through the training", on_device=True
)
