"""What several checkpoints must have in common, and must not, for their scores to be averaged."""

from collections.abc import Sequence

from dataworth.storage.errors import InputError
from dataworth.storage.spelling import setting
from dataworth.tasks.model.config import ModelConfig
from dataworth.tasks.model.loading import load, vocabulary

__all__ = ["refuse_other_layers", "refuse_other_tokenizers", "refuse_same_weights"]


def refuse_other_tokenizers(checkpoints: Sequence[ModelConfig]) -> None:
    """Checkpoints that would read the same texts as other examples; no weights are read.

    Raises:
        InputError: a tokenizer, or the classes of a classifier, differ from those of the first checkpoint.
    """
    if len(checkpoints) < 2:
        return
    first, *others = checkpoints
    tokenizer, classes = vocabulary(first)
    for other in others:
        own_tokenizer, own_classes = vocabulary(other)
        what = "another tokenizer" if own_tokenizer != tokenizer else "other classes" if own_classes != classes else ""
        if what:
            raise InputError(
                f"{setting('model.name')} {other.name}: has {what} than {first.name}; pass checkpoints of one "
                "model, or value them "
                "one by one"
            )


def refuse_same_weights(checkpoints: Sequence[ModelConfig]) -> None:
    """Checkpoints that are the same by another name: their mean would look surer than it is.

    Raises:
        InputError: two hold the same weights.
    """
    if len(checkpoints) < 2:
        return
    names: dict[str, str] = {}
    for checkpoint in reversed(checkpoints):  # the first comes last: the run goes on with it, loaded already
        known = names.setdefault(load(checkpoint).fingerprint, checkpoint.name)
        if known != checkpoint.name:
            raise InputError(
                f"{setting('model.name')} {checkpoint.name}: holds the same weights as {known}; leave one of them out"
            )


def refuse_other_layers(checkpoints: Sequence[ModelConfig]) -> None:
    """Checkpoints whose layers cannot be compared one by one.

    Raises:
        InputError: the tracked layers differ from those of the first checkpoint.
    """
    if len(checkpoints) < 2:
        return
    names = {each.name: [layer.name for layer in load(each).layers] for each in reversed(checkpoints)}
    first = checkpoints[0].name
    for other, layers in names.items():
        if layers != names[first]:
            raise InputError(
                f"{setting('scoring.by_layer')}: {other} has other layers than {first}; leave "
                f"{setting('scoring.by_layer')} out"
            )
