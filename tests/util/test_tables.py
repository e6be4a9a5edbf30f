"""CSV files and text tables: what is cut short is noticed, whatever is in it."""

import pytest

from util.errors import UserError
from util.tables import append_row, read_csv, text_table, write_csv


def test_rows_come_back_as_text_and_not_a_number_as_nothing(tmp_path):
    file = tmp_path / "scores.csv"
    write_csv(file, [{"organ": "liver", "dice": 0.123456789}, {"organ": "a, b", "dice": float("nan")}], digits=6)
    assert read_csv(file) == [{"organ": "liver", "dice": "0.123457"}, {"organ": "a, b", "dice": ""}]


def test_appended_rows_share_a_header_and_keep_six_digits(tmp_path):
    for step in (1, 2):
        append_row(tmp_path / "metrics.csv", {"step": step, "loss": step / 7})
    assert read_csv(tmp_path / "metrics.csv") == [
        {"step": "1", "loss": "0.142857"},
        {"step": "2", "loss": "0.285714"},
    ]


@pytest.mark.parametrize("text", ["step,loss\n1,0.25\n2,0.5", "step,loss\n1,0.25\n2\n", "step,loss\n1,0.25\n2,0.5,7\n"])
def test_a_row_that_is_not_whole_is_refused_unless_the_file_grows(tmp_path, text):
    file = tmp_path / "metrics.csv"
    file.write_text(text)
    with pytest.raises(UserError, match="line 3 is not whole"):
        read_csv(file)
    assert read_csv(file, growing=True) == [{"step": "1", "loss": "0.25"}]


def test_words_stand_left_and_numbers_right():
    lines = text_table([{"organ": "liver", "dice": 0.5}, {"organ": "left kidney", "dice": 12.25}]).splitlines()
    assert [line.index(word) for line, word in zip(lines[1:], ("liver", "left"), strict=True)] == [0, 0]
    assert len({len(line) for line in lines}) == 1
