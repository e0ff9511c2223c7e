"""The table of what was tried, out of what pytest and libFuzzer have written."""

from __future__ import annotations

import subprocess
import sys

import pytest
from table import table

XML = """<testsuites><testsuite name="pytest" timestamp="2026-11-28T10:00:00" time="12.4">
<testcase classname="tests.faults.test_runs" name="test_a_kill[1]">
<properties><property name="kills" value="3"/></properties></testcase>
<testcase classname="tests.faults.test_runs" name="test_a_kill[2]"><failure message="no"/></testcase>
<testcase classname="tests.faults.test_runs" name="test_a_kill[3]"><skipped/></testcase>
</testsuite></testsuites>"""
LOG = "#2\tINITED cov: 17 ft: 20\n#4096\tpulse  cov: 31 ft: 40\n"


def test_every_kind_of_result_is_counted(tmp_path):
    (tmp_path / "faults.xml").write_text(XML)
    (tmp_path / "coverage_guided-recipe.log").write_text(f"{LOG}Done 5000 runs in 301 second(s)\n")
    assert table(sorted(tmp_path.iterdir())).splitlines()[2:] == [
        "| `coverage_guided`: recipe | 5,000 | 5,000 as they should be; 31 branches reached |",
        "| `test_runs`: a kill | 2 | 1 as they should be; 1 failed; 3 kills |",
        "",
        "5,002 cases, 1 failed; run on 2026-11-28, 313 seconds of tests.",
    ]


def test_the_examples_of_hypothesis_are_counted(tmp_path):
    """As the version that is installed writes them: they have been worded in several ways."""
    (tmp_path / "test_numbers.py").write_text(
        "from hypothesis import given, settings, strategies\n\n"
        "@settings(max_examples=20, database=None, deadline=None)\n"
        "@given(strategies.integers())\n"
        "def test_any(number):\n    pass\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--quiet",
        "-p",
        "no:cacheprovider",
        "--junitxml=written.xml",
        "test_numbers.py",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert table([tmp_path / "written.xml"]).splitlines()[2] == "| `test_numbers`: any | 20 | 20 as they should be |"


@pytest.mark.parametrize(("text", "cases"), [(LOG, "4,096"), ("an error before the first input", "1")])
def test_a_coverage_guided_run_that_broke_off_has_failed(text, cases, tmp_path):
    (tmp_path / "coverage_guided-texts.log").write_text(text)
    assert table([tmp_path / "coverage_guided-texts.log"]).splitlines()[-1].startswith(f"{cases} cases, 1 failed")
