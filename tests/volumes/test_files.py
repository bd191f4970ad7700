"""Files are whole under their name, or not there; tables and texts are read whatever program wrote them."""

import csv
import hashlib
import math
import os
import signal
import subprocess
import sys

import pytest
from digar.volumes.files import (
    file_hash,
    printable,
    read_json,
    read_rows,
    read_table,
    read_text,
    remove_leftovers,
    whole_file,
    write_rows,
    write_text,
)

BINARY = os.fsdecode(b"M\xfcller.nii.gz")  # a name in Latin-1

# Writing


def test_while_a_file_is_written_nothing_is_under_its_name(tmp_path):
    with whole_file(tmp_path / "ward/report.csv") as temporary:
        temporary.write_text("half")
        assert not (tmp_path / "ward/report.csv").exists()
    assert [file.name for file in (tmp_path / "ward").iterdir()] == ["report.csv"]


def test_a_table_that_fails_half_way_leaves_the_former_one(tmp_path):
    write_rows(tmp_path / "table.csv", [("path", "reason"), ("a, b.nii", "ö")])
    former = (tmp_path / "table.csv").read_text(encoding="utf-8")
    assert former.splitlines() == ["path,reason", '"a, b.nii",ö']
    with pytest.raises(ZeroDivisionError):
        write_rows(tmp_path / "table.csv", ((1 / n,) for n in (1, 0)))
    assert [file.read_text(encoding="utf-8") for file in tmp_path.iterdir()] == [former]


@pytest.mark.parametrize("name", ["x" * 248 + ".nii.gz", "x" * 3 + "." + "y" * 251, "ü" * 127])
def test_the_longest_names_that_a_file_system_takes_can_be_written(name, tmp_path):
    write_text(tmp_path / name, "whole")
    assert [file.name for file in tmp_path.iterdir()] == [name]


HALF = """
import sys, time
from digar.volumes.files import whole_file
with whole_file(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("begun", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_run_left_is_removed_and_what_another_is_writing_stays(tmp_path):
    writing = [
        subprocess.Popen([sys.executable, "-c", HALF, str(tmp_path / name)], stdout=subprocess.PIPE)
        for name in ("a.nii.gz", "b.csv")
    ]
    for process in writing:
        process.stdout.readline()
    (tmp_path / ".digar-notes").write_text("of the user")
    remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    for process in writing:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    remove_leftovers(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [".digar-notes"]
    remove_leftovers(tmp_path / "absent")


def test_a_cell_never_is_a_formula_and_numbers_stay_numbers(tmp_path):
    cells = ["=1+1", "+cmd", "@SUM(A1)", "-x.nii", "-1.5", "+3e4", "plain", "'quoted'"]
    write_rows(tmp_path / "a.csv", [cells, [-2.5, 3, math.nan, True, "", 0, -1, None]])
    with (tmp_path / "a.csv").open(newline="") as stream:
        first, second = csv.reader(stream)
    assert first == ["'=1+1", "'+cmd", "'@SUM(A1)", "'-x.nii", "-1.5", "+3e4", "plain", "'quoted'"]
    assert second == ["-2.5", "3", "", "True", "", "0", "-1", ""]
    assert read_rows(tmp_path / "a.csv")[0] == (1, cells)


def test_names_that_are_no_text_are_shown_and_written(tmp_path):
    assert printable(BINARY) == r"M\xfcller.nii.gz"
    assert printable("a\nb\x1b[31m\ud800.nii") == r"a\nb\x1b[31m\ud800.nii"
    assert printable("größe 肝.nii") == "größe 肝.nii"
    write_rows(tmp_path / "a.csv", [[BINARY]])
    assert (tmp_path / "a.csv").read_text() == "M\\xfcller.nii.gz\n"


# Reading


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_read_in_the_encoding_that_its_mark_tells(encoding, tmp_path):
    (tmp_path / "a.txt").write_bytes("Größe, 肝\n".encode(encoding))
    assert read_text(tmp_path / "a.txt") == "Größe, 肝\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a\nMüller".encode("latin-1"), "a.txt, line 2: this is no UTF-8 text: save the file as UTF-8"),
        ("Müller".encode("utf-16-le"), "a.txt"),
        ("Muller".encode("utf-16-le"), r"a.txt is not text \(it contains zero bytes\)"),
        (b"\xff\xfea", "a.txt, line 1: this is no UTF-16 text"),
    ],
)
def test_what_is_no_text_is_refused_by_name(content, reason, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_text(tmp_path / "a.txt")


def test_json_with_a_mark_is_read_and_what_is_none_or_of_another_kind_is_refused_by_name(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(file, dict) == {"a": 1}
    with pytest.raises(ValueError, match=r"a.json must hold a list \[...\], it holds an object"):
        read_json(file, list)
    for content, held in (("3", "a number"), ("null", "null"), ("true", "true or false"), ('"x"', "a text")):
        file.write_text(content)
        with pytest.raises(ValueError, match=rf"a.json must hold an object \{{...\}}, it holds {held}"):
            read_json(file, dict)
    file.write_text("{\n,")
    with pytest.raises(ValueError, match="a.json is not valid JSON: .*line 2") as caught:
        read_json(file)
    assert caught.value.__cause__ is None  # what a command shows in its last line is this sentence


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_table_of_any_spreadsheet_program_is_read(encoding, delimiter, tmp_path):
    lines = ["patient,file,type,", "", "1, ü.nii ,7,", ",,,", '2,"b, c.nii",8']
    text = "\r\n".join(lines[:4] + [lines[4]]).replace(", c", "\0").replace(",", delimiter).replace("\0", ", c")
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    assert read_table(tmp_path / "a.csv", ["file", "type"]) == [
        (3, {"patient": "1", "file": "ü.nii", "type": "7"}),
        (5, {"patient": "2", "file": "b, c.nii", "type": "8"}),
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", r"a.csv has the columns \(none\); it lacks file"),
        ("name\nx", "a.csv has the columns name; it lacks file"),
        ("id,file\n1,x\n\n2\n", "a.csv, line 4: 1 fields where the header has 2"),
        ("id,file\n1,x, y.nii\n", "a.csv, line 2: 3 fields where the header has 2"),
        ("file,file\nx,y\n", "a.csv has more than one column file"),
        ('id,file\n1,"x\n', "a.csv, line 2: unexpected end of data"),
    ],
)
def test_a_table_that_lacks_something_is_refused_with_its_line(content, reason, tmp_path):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ValueError, match=reason):
        read_table(tmp_path / "a.csv", ["file"])


def test_a_files_hash_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    assert file_hash(tmp_path / "a") == hashlib.sha256(b"x" * 3_000_000).hexdigest()
