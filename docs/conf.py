"""How Sphinx builds the site: `make docs` writes it to build/docs; every warning is an error."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for config_reference, which lies beside this file

project = "dagger_exp"
project_copyright = "the dagger_exp authors"
extensions = ["myst_parser", "config_reference"]
myst_heading_anchors = 3  # links may name a heading, as in configuration.md#rounds
nitpicky = True
smartquotes = False

html_theme = "furo"
html_title = "dagger_exp"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
