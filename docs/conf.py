"""Sphinx settings; copied beside the prepared pages by to_sphinx.py."""

import json
import pathlib

site = json.loads((pathlib.Path(__file__).parent / "_site.json").read_text(encoding="utf-8"))
project = author = html_title = site["title"]
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx_copybutton", "sphinx_design"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "attrs_inline", "html_image"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_merge_streams = True
mathjax_path = "tex-svg.js"  # put into _static by to_sphinx.py: formulas need no network
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["styles.css"]
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header"]
exclude_patterns = ["_build"]
