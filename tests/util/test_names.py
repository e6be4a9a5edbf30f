"""Names become different file names inside the folder, or are refused."""

import pytest

from util.errors import UserError
from util.names import distinct_labels, require_distinct, safe_names


def test_names_become_file_names_inside_the_folder():
    names = ["liver", "right kidney", "..spleen", "Müller-Niere", "a: b"]
    files = ["liver", "right_kidney", "spleen", "Müller-Niere", "a_b"]
    assert list(safe_names(names).values()) == files


@pytest.mark.parametrize(
    "names",
    [
        ["kidney_L", "kidney L"],
        ["../../../escaped/liver"],
        ["/etc/passwd"],
        ["a\\b"],
        ["Liver", "liver"],
        ["M\u00fcller", "Mu\u0308ller"],
        ["."],
        [".."],
        [" "],
        [""],
        ["///"],
        ["con"],
        ["NUL.txt"],
        ["all"],
        ["left,right"],
        ["x" * 101],
        ["two\nlines"],
    ],
)
def test_names_that_would_be_one_file_or_none_are_refused(names):
    with pytest.raises(UserError):
        safe_names(names)


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        ([("kidney", 2), ("kidney", 3)], "kidney=2 kidney=3: one name stands for one label id"),
        ([("liver", 1), ("leber", 1)], "liver=1 leber=1: one name stands for one label id"),
        ([("kidney", 2), ("kidney", 2)], "one name stands for one label id"),
        ([("kidney_L", 2), ("kidney L", 3)], "both would be kidney_L"),
        ([("label 3", 2)], "this is what label 3 is called"),
    ],
)
def test_organs_that_are_not_distinct_are_refused(pairs, sentence):
    with pytest.raises(UserError, match=sentence):
        distinct_labels(pairs)


def test_scans_that_would_be_one_file_on_some_disk_are_refused():
    assert distinct_labels([("liver", 1), ("label 3", 3)]) == {"liver": 1, "label 3": 3}
    with pytest.raises(UserError, match=r"'a/B\.nii' and 'b\.nii': as segmentations both would be b"):
        require_distinct({"a/B.nii": "B", "b.nii": "b"}, "segmentations")
