"""A file appears whole or not at all, and nothing else is left behind."""

import hashlib
import os

import pytest

from util.errors import UserError
from util.files import digest, whole_file, write_text


def test_a_block_that_fails_leaves_the_old_file_alone(tmp_path):
    file = tmp_path / "folder/table.csv"
    write_text(file, "old")
    with pytest.raises(KeyError), whole_file(file) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert file.read_text("utf-8") == "old" and list(file.parent.iterdir()) == [file]


def test_a_file_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / "file/table.csv", "text")


def test_names_in_another_encoding_keep_their_bytes(tmp_path):
    write_text(tmp_path / "names.txt", os.fsdecode(b"Caf\xe9"))
    assert (tmp_path / "names.txt").read_bytes() == b"Caf\xe9"


def test_the_digest_is_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert digest(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()
