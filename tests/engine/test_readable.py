"""Numbers as a person reads them."""

import pytest

from contentv.engine.readable import decimals, duration, rounded


@pytest.mark.parametrize(
    "value, digits, text",
    [(48_706.3, 3, "48,700"), (999.9, 3, "1,000"), (7.91, 2, "7.9"), (0.00412, 2, "0.0041"), (0.0, 3, "0")],
)
def test_numbers_have_the_digits_that_are_known(value, digits, text):
    assert rounded(value, digits) == text


def test_columns_have_the_decimals_of_their_size():
    assert [decimals(value) for value in (1234.0, 64.4, 6.85, 0.034, 0.0)] == [0, 1, 2, 4, 0]


@pytest.mark.parametrize("seconds, text", [(95, "95 s"), (180, "3 min"), (9000, "2.5 h"), (10**6, "11.6 days")])
def test_durations_are_in_a_unit_of_their_size(seconds, text):
    assert duration(seconds) == text
