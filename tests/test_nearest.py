"""Names that a misspelt file or folder may have been meant to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from st_distill.nearest import suggest_path


@pytest.mark.parametrize(
    ("written", "offered"),
    [
        ("dat/stsb/test.tsv", "data/stsb/test.tsv"),
        ("data/stbs/test.tsv", "data/stsb/test.tsv"),
        ("data/stsb/tset.tsv", "data/stsb/test.tsv"),
        ("data/stbs/", "data/stsb"),
        ("data/stbs/train.tsv", None),  # the folder that is like it has no such file
        ("data/stsb/test.tsv/x", None),
        ("data/stsb/test.tsv", None),  # it is there
        ("xyz", None),
    ],
)
def test_the_first_part_that_is_not_there_is_mended(written, offered, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "stsb").mkdir(parents=True)
    (tmp_path / "data" / "stsb" / "test.tsv").touch()
    assert suggest_path(Path(written)) == (f"; did you mean '{offered}'?" if offered else "")
    whole = f"; did you mean '{tmp_path / offered}'?" if offered else ""
    assert suggest_path(tmp_path / written) == whole


def test_a_link_to_nothing_is_told(tmp_path):
    link = tmp_path / "texts.txt"
    link.symlink_to(tmp_path / "nothing.txt")
    (tmp_path / "text.txt").touch()
    for path in (link, link / "a"):
        assert suggest_path(path) == f"; {link} is a link to what is not there"


def test_only_what_fits_is_offered(tmp_path):
    (tmp_path / "texts.tsv").touch()
    (tmp_path / "texts").mkdir()
    assert suggest_path(tmp_path / "text", Path.is_file).endswith("/texts.tsv'?")
    assert suggest_path(tmp_path / "text", Path.is_dir).endswith("/texts'?")
