"""Every game there is: where its class is, and what it needs. Nothing else of the house names a game."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["FALLBACK", "GAMES", "Entry"]

GAMES_ROOM = "dataworth.tasks.coalitions.games"


@dataclass(frozen=True)
class Entry:
    """A game, known before anything of it is loaded.

    Args:
        where: its class, a `SourceGame` (see `game_class` there): module and name.
        said: what it is, for the description of the option.
        made_of: scores: those of a scoring pass; sums: of gradients and curvatures by source, beside the scores;
            trainings: of the base, again and again.
        shares_total: where the base is known, its values add up to what it says that training took off the loss.
        is_semivalue: how a coalition's utility is divided is chosen by --sources.semivalue.
        is_truth: its values are measured, so that nothing can correct them.
        values_documents: it can tell what every document is worth.
        most_coalitions: whose utility is asked for, where no budget is given.
    """

    where: str
    said: str
    made_of: Literal["scores", "sums", "trainings"]
    shares_total: bool = False
    is_semivalue: bool = True
    is_truth: bool = False
    values_documents: bool = False
    most_coalitions: int = 2000


# What is played where a check finds a game unreliable for a model.
FALLBACK = "additive"
GAMES: Mapping[str, Entry] = {
    "additive": Entry(
        f"{GAMES_ROOM}.additive:Additive",
        "a source is worth the sum of its scores, copies are both paid in full",
        "scores",
    ),
    "interaction": Entry(
        f"{GAMES_ROOM}.interaction:Interaction",
        "to second order around the trained model",
        "sums",
    ),
    "newton": Entry(
        f"{GAMES_ROOM}.newton:Newton",
        "by the parameters a coalition would have reached",
        "sums",
        shares_total=True,
    ),
    "path": Entry(
        f"{GAMES_ROOM}.path:Path",
        "while the whole corpus grows from nothing, immune to splitting a source",
        "sums",
        shares_total=True,
        is_semivalue=False,
        values_documents=True,
    ),
    "retrain": Entry(
        f"{GAMES_ROOM}.retrain:Retrain",
        "by training --model.base again on every coalition, as --training says: the truth, for small models",
        "trainings",
        shares_total=True,
        is_truth=True,
    ),
    "merged": Entry(
        f"{GAMES_ROOM}.merged:MergedGame",
        "by training --model.base on each source alone, as --training says, all together as long as one training, and "
        "by models of all other coalitions that are merged of these",
        "trainings",
        shares_total=True,
        most_coalitions=256,
    ),
    "ledger": Entry(
        f"{GAMES_ROOM}.ledger:LedgerGame",
        "by training --model.base once more, as --training says: each step's fall of the loss, divided among those "
        "whose documents made it; adds up to all that was taught, copies share",
        "trainings",
        shares_total=True,
        is_semivalue=False,
    ),
    "dose": Entry(
        f"{GAMES_ROOM}.dose:DoseGame",
        "by training --model.base in part, three times or seven, as --training says, and going back through each: what "
        "everybody adds while the doses of all grow together from nothing; adds up to all that was taught, immune to "
        "splitting, for small models",
        "trainings",
        shares_total=True,
        is_semivalue=False,
        values_documents=True,
    ),
}
