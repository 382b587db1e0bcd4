"""What is said of values that no loss can change by."""

from dataclasses import replace

import pytest

from dataworth.tasks.report.account import Account, account_of
from dataworth.tasks.report.results.query_losses import QueryLoss

LOSSES = {"q1": QueryLoss(20.0, 5, False), "q2": QueryLoss(10.0, 5, False)}


def made(*values: float) -> Account:
    return account_of([{"kind": "marginal", "value": value, "game": "additive"} for value in values], LOSSES, 2, {})


def said(account: Account) -> str:
    return account.sentences()[1]


def test_values_within_what_can_be_lost_are_left_alone():
    # Of ten tokens a blind guess loses 120 nats, 90 more than these 30.
    for values in ((89.0, -29.0), (0.0, 0.0), (3.0, 40.0)):
        assert "cannot be right" not in said(made(*values))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ((91.0, 1.0), "(45.5 nats a query of one source, and who guesses blindly loses only 45 more)"),
        ((5.0, -31.0), "(15.5 nats a query of one source, and no more than 15 are lost in all)"),
    ],
)
def test_values_beyond_it_are_said_to_be_an_order_alone(values, sentence):
    assert f"Their size cannot be right {sentence}: take the order of the sources alone" in said(made(*values))


def test_nothing_is_said_of_what_has_no_unit_or_is_no_marginal_value():
    beyond = made(1000.0)
    for other in (
        replace(beyond, in_nats=False),
        replace(beyond, of_class=True),
        replace(beyond, model=None),
        replace(beyond, kind="share", total=2000.0),
    ):
        assert "cannot be right" not in said(other)
