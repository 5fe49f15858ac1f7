"""The tables of the reports in this folder."""

import re
from pathlib import Path


def replace_table(path: Path, table: str) -> None:
    """Write a Markdown table in the place of the first one of a file; all other text stays."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    old = re.search(r"(^\|.*\n?)+", text, re.MULTILINE)
    start, end = old.span() if old else (len(text), len(text))
    path.write_text(f"{text[:start]}{table.strip()}\n{text[end:]}", encoding="utf-8")
