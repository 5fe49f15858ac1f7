"""benchmarks/tables.py: what people wrote beside a table stays."""

import runpy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"

pytestmark = pytest.mark.skipif(
    not BENCHMARKS.exists(), reason="benchmarks are not part of the sdist"
)


@pytest.mark.parametrize("name", ["peers", "group_scale"])
def test_only_the_table_of_a_report_is_replaced(tmp_path, name):
    replace_table = runpy.run_path(str(BENCHMARKS / "tables.py"))["replace_table"]
    text = (BENCHMARKS / f"{name}.md").read_text(encoding="utf-8")
    path = tmp_path / "report.md"
    path.write_text(text, encoding="utf-8")
    replace_table(path, "| a |\n|---|\n| 1 |\n")
    before, after = path.read_text(encoding="utf-8").split("| a |\n|---|\n| 1 |\n")
    assert text.startswith(before)
    assert text.endswith(after)
    assert "|" not in before + after
    assert len(after) > 200


def test_a_report_that_is_not_there_yet_holds_the_table(tmp_path):
    replace_table = runpy.run_path(str(BENCHMARKS / "tables.py"))["replace_table"]
    for _ in range(2):
        replace_table(tmp_path / "new.md", "| a |\n|---|\n| 1 |")
        assert (tmp_path / "new.md").read_text() == "| a |\n|---|\n| 1 |\n"
