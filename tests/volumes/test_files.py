"""Files are whole under their name, or not there."""

import pytest
from digar.volumes.files import whole_file, write_rows


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
