"""What a report says of trainings that corrected the values, or could not."""

from dataworth.tasks.report.numbers import percent
from dataworth.tasks.report.page.certainty import certainty

SOURCES = [{"low": 1.0, "high": 2.0}, {"low": 0.2, "high": 0.9}]
MEASURED = {
    "v(all)": -350.0, "v(all), of the model": -351.0, "v(none)": -532.0, "reach": 0.99, "coalitions": 10,
    "estimator": "newton, corrected by 10 trainings", "reliable": True, "missed": 0.2,
}  # fmt: skip
FALLBACK = {"fallback": "newton: predicted changes of loss miss the measured ones by 90%"}


def test_corrected_values_are_those_of_trainings_whatever_became_of_the_game():
    for notes in (MEASURED, {**MEASURED, **FALLBACK}):
        said = certainty(SOURCES, {**notes, "certified": True})
        assert said.warning == ""
        assert "351 nats of the model, 350 after training again on every source and 532 of the base" in said.check
        assert "10 trainings (newton, corrected by 10 trainings). They are estimates of what all" in said.check
    assert certainty(SOURCES, {**MEASURED, **FALLBACK}).warning.startswith("These are not the values of the game")


def test_how_trainings_certify_is_said():
    paired = certainty(SOURCES, {**MEASURED, "certified": True, "unbiased": True}).check
    assert "Values come from newton, corrected by 10 trainings. They are estimates of what all" in paired
    assert "without bias" in paired
    how = {"estimator": "9 trainings, and models merged from them", "unbiased": False, "certified": True}
    merged = certainty(SOURCES, {**MEASURED, **how}).check
    assert "Values come from 9 trainings, and models merged from them." in merged
    assert "the interval holds what merged models miss" in merged
    assert "without bias" not in merged


def test_trainings_that_lead_elsewhere_are_told():
    notes = {"missed": 0.2, "v(all)": -350.0, "v(none)": -532.0, "certified": False, "not corrected": "set --training"}
    assert certainty(SOURCES, notes).warning.endswith("they lead elsewhere: set --training.")


def test_nothing_is_less_than_nothing():
    assert percent(-0.0001) == "0.0%"
    assert percent(-0.0006) == "-0.1%"


def test_of_merged_models_it_is_said_what_no_interval_holds():
    notes = {
        "v(all)": -350.0, "v(none)": -532.0, "reach in the weights": 0.74, "coalitions": 8, "reliable": True,
        "utility": "merged models", "estimator": "models merged from the model and from 3 trainings on one source each",
    }  # fmt: skip
    said = certainty(SOURCES, notes).check
    assert "350 nats of the model and 532 of the base" in said
    assert "go 74% of the way between their weights" in said
    assert "intervals do not hold what merged models miss" in said
    assert "additive game" not in said
    assert "adds up scores" in certainty(SOURCES, {**notes, "fallback": "merged: set --training"}).check
    again = {**MEASURED, "utility": "merged models", "estimator": "models merged from a training on all"}
    assert "Values come from 10 coalitions (models merged from a training on all)" in certainty(SOURCES, again).check
