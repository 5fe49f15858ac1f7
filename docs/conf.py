"""How Sphinx builds the documentation: `python -m sphinx docs out/site`."""

from siam_bids import __version__

project = "siam-bids"
project_copyright = "the siam-bids developers"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
myst_links_external_new_tab = True
exclude_patterns = ["images"]
html_theme = "furo"
html_title = f"siam-bids {release}"
html_show_sphinx = False
napoleon_google_docstring = False
autodoc_typehints = "description"
autodoc_member_order = "bysource"
