import pytest

from eplb_traces.errors import EplbError, InputError, MissingExtraError, naming_place


def test_place_is_put_before_the_message_once():
    with pytest.raises(InputError, match=r"^file\.npz: rows from 3: 7 is too large$"), naming_place("file.npz"):  # noqa: SIM117
        with naming_place("file.npz"), naming_place("rows from 3"):
            raise InputError("7 is too large")


def test_other_errors_pass_unnamed():
    with pytest.raises(MissingExtraError, match=r"^Parquet needs the extra 'trace'"), naming_place("file.parquet"):
        raise MissingExtraError("Parquet", "trace")


def test_one_except_clause_catches_all_and_builtin_ones_fit():
    assert issubclass(InputError, EplbError)
    assert issubclass(InputError, ValueError)
    assert issubclass(MissingExtraError, ImportError)
