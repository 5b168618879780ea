"""Numbers of bytes, as they are typed and as they are printed."""

import pytest
import typer

from eplb.errors import FormatError
from eplb_cli.arguments.constraints_file import read_constraints
from eplb_cli.arguments.parse import byte_count
from eplb_cli.output import byte_size


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("44040192", 44040192),
        ("42MiB", 44040192),  # 42 * 1024 ** 2
        ("44MB", 44e6),
        ("44 MB", 44e6),
        ("1.5GiB", 1610612736),  # 1.5 * 1024 ** 3
        ("1.5GB", 1.5e9),
        ("2TB", 2e12),
        ("4kB", 4000),
        ("4KiB", 4096),
        ("7B", 7),
        ("400e6", 400e6),
        (44040192.0, 44040192),
        ("0", 0),
    ],
)
def test_bytes_are_read_with_their_unit(text, count):
    assert byte_count(text) == count


@pytest.mark.parametrize("text", ["", "MB", "44mb", "44M", "44 bits", "-1", "1e999", "nan", "inf", "4 4MB", "1,5GB"])
def test_what_is_no_number_of_bytes_is_refused(text):
    with pytest.raises(typer.BadParameter, match="bytes"):
        byte_count(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.000 kB"),
        (44040192, "44.040 MB"),
        (2598371328, "2.598 GB"),
        (3e12, "3.000 TB"),
    ],
)
def test_bytes_are_printed_in_the_unit_that_fits(count, text):
    assert byte_size(count) == text


@pytest.mark.parametrize("count", [0, 7, 4000, 44_000_000, 1_500_000_000])
def test_what_is_printed_can_be_typed(count):
    assert byte_count(byte_size(count)) == count


def test_an_option_takes_a_unit(run, plan_path):
    by_unit, by_number = (
        run("diff", plan_path, plan_path, "--expert-bytes", size, "--json") for size in ("42MiB", "44040192")
    )
    assert (by_unit.exit_code, by_unit.stdout) == (0, by_number.stdout)
    wrong = run("diff", plan_path, plan_path, "--expert-bytes", "44M")
    assert wrong.exit_code == 2
    assert "44MB" in wrong.stderr


def test_the_constraints_file_takes_units(tmp_path):
    path = tmp_path / "constraints.toml"
    path.write_text('expert_bytes = ["1kB", 2000]\nrank_bytes = "4kB"\n')
    found = read_constraints(path)
    assert (list(found.expert_bytes), found.rank_bytes) == ([1000, 2000], 4000)
    path.write_text('rank_bytes = "4 bits"\n')
    with pytest.raises(FormatError, match="rank_bytes: '4 bits': expected a number of bytes"):
        read_constraints(path)
