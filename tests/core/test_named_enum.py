"""Words looked up by name."""

import pytest

from eplb.core.named_enum import NamedEnum
from eplb.errors import UnknownNameError


class SeatOrder(NamedEnum):
    FRONT = "front"
    BACK = "back"


def test_a_member_is_found_by_its_word():
    assert SeatOrder.named("back") is SeatOrder.BACK


def test_an_unknown_word_is_refused_with_what_it_should_name_and_the_words_there_are():
    with pytest.raises(UnknownNameError, match="unknown seat order 'side': expected one of back, front"):
        SeatOrder.named("side")
