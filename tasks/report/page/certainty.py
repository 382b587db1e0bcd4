"""How sure a valuation is of itself, in sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dataworth.storage.spelling import setting
from dataworth.tasks.report.numbers import number, percent

__all__ = ["Certainty", "certainty"]


@dataclass(frozen=True)
class Certainty:
    """What is to be known before the values are used.

    Args:
        warning: why the values are not of the game that was asked for; empty where they are.
        check: what the game predicted against what was measured.
        intervals: how many tell a sign or an order.
        averages: what the values are means over; empty where they are of one checkpoint and one projection.
    """

    warning: str
    check: str
    intervals: str
    averages: str


def certainty(sources: Sequence[Mapping[str, Any]], notes: Mapping[str, Any]) -> Certainty:
    """Sentences on the check, the fallback and the intervals.

    Args:
        sources: rows of VALUES of all queries together, largest value first.
        notes: what was written beside the values (`Check.facts`, `Outcome.facts`, `fallback`).
    """
    return Certainty(_warning(notes), _check(notes), _intervals(sources), _averages(notes))


def _warning(notes: Mapping[str, Any]) -> str:
    if "not corrected" in notes:
        return f"Trainings were to correct these values and do not, as they lead elsewhere: {notes['not corrected']}."
    if "fallback" not in notes or notes.get("certified"):
        return ""
    game, _, reason = str(notes["fallback"]).partition(": ")
    return (
        f"These are not the values of the game that was asked for. The game {game} is not to be trusted for this model "
        f"({reason}), so the additive values are given: two copies of a source are both paid in full."
    )


def _check(notes: Mapping[str, Any]) -> str:
    if "v(all), of the model" in notes:
        return _retrained(notes)
    if "reach in the weights" in notes and "fallback" not in notes:
        return _merged(notes)
    if "missed" not in notes:
        return (
            "The additive game was not checked against the model: it adds up scores, which are first-order estimates, "
            "and pays two copies of a source in full."
        )
    everybody, nobody = -float(notes["v(all)"]), -float(notes["v(none)"])
    said = (
        f"The loss of all queries is {number(everybody)} nats with every source and {number(nobody)} with none. "
        f"Without single sources, the changes of loss that the game predicts miss the measured ones by "
        f"{percent(float(notes['missed']), 0)}."
    )
    if "reach" in notes:
        said += f" The projected parameters cover {percent(float(notes['reach']), 0)} of the way back to the base."
    if "coalitions" in notes:
        said += f" Values come from {int(notes['coalitions']):,} coalitions ({notes.get('estimator', 'all of them')})."
    return said


def _retrained(notes: Mapping[str, Any]) -> str:
    model, everybody, base = (number(-float(notes[key])) for key in ("v(all), of the model", "v(all)", "v(none)"))
    said = (
        f"The loss of all queries is {model} nats of the model, {everybody} after training again on every source and "
        f"{base} of the base: training again goes {percent(float(notes['reach']), 0)} of the way."
    )
    if "unbiased" in notes:
        said += f" Values come from {notes['estimator']}."
    elif "coalitions" in notes:
        of = "coalitions" if notes.get("utility") == "merged models" else "trainings"
        said += f" Values come from {int(notes['coalitions']):,} {of} ({notes.get('estimator', 'all of them')})."
    if notes.get("certified"):
        said += " They are estimates of what all trainings would tell"
        if notes.get("unbiased", True):
            said += ", without bias: the game was a guide, no more."
        else:
            said += "; the interval holds what merged models miss, as further trainings, or those left out, tell it."
    return said


def _merged(notes: Mapping[str, Any]) -> str:
    model, base = (number(-float(notes[key])) for key in ("v(all)", "v(none)"))
    return (
        f"The loss of all queries is {model} nats of the model and {base} of the base. Trainings on each source alone, "
        f"merged, go {percent(float(notes['reach in the weights']), 0)} of the way between their weights. Values come "
        f"from {int(notes['coalitions']):,} coalitions ({notes['estimator']}), and their intervals do not hold what "
        f"merged models miss; further trainings measure that ({setting('sources.trainings')})."
    )


def _averages(notes: Mapping[str, Any]) -> str:
    repeated = [f"{int(notes[what]):,} {what}" for what in ("checkpoints", "projections") if what in notes]
    if not repeated:
        return ""
    said = (
        f"Values are the mean over {' and '.join(repeated)}, and intervals tell how far it would move with others of "
        "their kind: a few leave them wide."
    )
    if "missed" in notes or "reach" in notes:
        said += " The check is that of the first."
    if "checkpoints" in notes:
        said += " The window that a passage shows is that of the first checkpoint."
    return said


def _intervals(sources: Sequence[Mapping[str, Any]]) -> str:
    known = [row for row in sources if row["low"] is not None and row["high"] is not None]
    if not known:
        return "No interval is known."
    undecided = sum(row["low"] <= 0 <= row["high"] for row in known)
    said = (
        f"{len(known):,} of {len(sources):,} intervals are known; {undecided:,} of them "
        f"{'contains' if undecided == 1 else 'contain'} 0, so that not even the sign is certain."
    )
    if len(sources) > 1 and known[:2] == list(sources[:2]):
        first, second = sources[:2]
        together = second["high"] >= first["low"]
        said += (
            " The intervals of the first two sources overlap: their order is not certain."
            if together
            else " The first source's interval lies above that of the second."
        )
    return said
