"""The documentation site: README.md, the documents beside this file, and the docstrings.

`make docs` builds it. The sources are those of the whole repository, so that links between
documents are the same on the site and in the files.
"""

import pathlib

import pysoftmax

project = "pysoftmax"
author = "the pysoftmax developers"
release = pysoftmax.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
]
include_patterns = ["*.md", "docs/**", "examples/*/README.md"]
exclude_patterns = ["docs/conf.py", "docs/site/**"]
root_doc = "README"

# What README.md, which has no place for it, is the beginning of.
CONTENTS = """
```{toctree}
:hidden:

Guide <docs/guide>
API reference <docs/reference>
Arrays <docs/arrays>
Dask <docs/dask>
CuPy <docs/gpu>
Numerics <docs/numerics>
Performance <docs/performance>
CHANGELOG
CONTRIBUTING
examples/pysoftmax-recorded/README
```
"""


def _add_contents(app, name, source):
    if name == root_doc:
        source[0] += CONTENTS


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", _add_contents)


myst_heading_anchors = 3

autosummary_generate = True
numpydoc_show_class_members = False
default_role = "py:obj"
autodoc_typehints = "none"  # the docstrings say more

# Absolute, because a relative one is sought beside this file or beside the sources, as it comes.
templates_path = [str(pathlib.Path(__file__).parent / "site")]
html_theme = "pydata_sphinx_theme"
html_title = f"pysoftmax {release}"
html_additional_pages = {"index": "index.html"}
html_show_sourcelink = False
html_theme_options = {
    "header_links_before_dropdown": 7,
    "show_prev_next": False,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"*": [], "docs/*": [], "examples/**": []}  # the reference alone has one
