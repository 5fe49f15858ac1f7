"""HTML pages: what is said on them, as values, and Jinja that turns the values into one file each.

A page holds its stylesheet, scripts and data; nothing is fetched from a network.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from siam_bids.support.package_data import resource

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup
from siam_bids.reports.build import typeset
from siam_bids.reports.content import (
    GroupReport,
    SubjectReport,
)


def _anchor(name: str) -> str:
    """Return `name` as an HTML id."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)


def _script_json(value: Any) -> Markup:
    """Return JSON that cannot end a script element in HTML."""
    from markupsafe import Markup

    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)  # noqa: S704 - escaped above


@lru_cache(maxsize=1)
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(resource("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["typeset"] = typeset
    environment.filters["ml"] = "{:,.2f}".format
    environment.filters["anchor"] = _anchor
    environment.filters["script_json"] = _script_json
    environment.globals["vendored"] = _vendored
    return environment


def _vendored(name: str) -> Markup:
    """Return a library of templates/vendor as it is; the text of ours and theirs, never of data."""
    from markupsafe import Markup

    text = resource("templates", "vendor", name).read_text(encoding="utf-8")
    return Markup(text.replace("</script", "<\\/script"))  # noqa: S704


def render_subject(report: SubjectReport) -> str:
    """Return the HTML page of one subject."""
    return _templates().get_template("subject.html.jinja").render(report=report)


def render_group(report: GroupReport) -> str:
    """Return the HTML page of all scans."""
    return _templates().get_template("group.html.jinja").render(report=report)
