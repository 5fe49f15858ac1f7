"""The documentation as its tests read it: the pages, and the code and the commands in them."""

import re
import textwrap

from conftest import ROOT

PAGES = tuple(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")))
)

_PROGRAMS = (
    r"siam-bids[\w-]*|apptainer|buildah|docker|make|nextflow|nipoppy|pip|pytest|python"
    r"|OUTPUT_DIR/\S+\.sh|\.venv/bin/\w+"
)
_COMMAND = re.compile(rf"(?:[A-Z_]+=\S+ )?(?:{_PROGRAMS})(?: |$)")
_FENCED = re.compile(r"(?<=\n\n)([^\n]+(?:\n[^\n]+)*)\n\n```\w+\n(.*?)```", re.DOTALL)
_CODE = re.compile(r"(?<=\n\n)(?P<block>(?:    .*\n)+)|(?<!`)`(?P<inline>[^`]+)`(?!`)")


def fenced(page: str) -> dict[str, str]:
    """The code between fences, by the paragraph above it."""
    return dict(_FENCED.findall(_text(page)))


def blocks(page: str) -> list[str]:
    """The indented code, block by block."""
    text = _FENCED.sub(r"\1\n", _text(page))
    return [textwrap.dedent(found["block"]) for found in _CODE.finditer(text) if found["block"]]


def commands(page: str) -> list[str]:
    """The command lines of a page, of blocks and of running text, in order, each on one line."""
    found = []
    for code in _CODE.finditer(_FENCED.sub(r"\1\n", _text(page))):
        if code["block"]:
            lines = textwrap.dedent(code["block"]).replace("\\\n", " ").splitlines()
        else:
            lines = [" ".join(code["inline"].split())]
            if " " not in lines[0]:  # the name of a program
                continue
        found += [line for line in lines if _COMMAND.match(line)]
    return found


def _text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def is_command(line: str) -> bool:
    """Whether a line begins with a program that the pages use."""
    return bool(_COMMAND.match(line))
