"""How the site is built: ``make docs``. Nothing is fetched from the network while building."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))

# One thread: pages are read one after another anyway, and figures come out the same everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")

project = "invertible-attention"
author = "The invertible-attention developers"
copyright = f"2026, {author}. MIT license"
release = version = installed_version("invertible-attention")
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "public_api",
    "references",
]
exclude_patterns = ["_build", "_extensions", "figures", "jupyter_execute", "**/.ipynb_checkpoints"]

# Warnings become errors on the command line (-W); here everything that can warn is made to.
nitpicky = True
nitpick_ignore_regex = [
    # Other projects' names are shown as they are: their inventories would have to be fetched.
    (r"py:.*", r"(torch|jaxtyping|typing|collections|abc|numpy|zuko|nflows|normflows|FrEIA|pyro)\b.*"),
    # Names of axes inside shapes.
    (r"py:class", r"'[^']*'"),
    # What bijections share, without using it itself.
    (r"py:class", r"invertible_attention\.flows\.closed_form\.ClosedForm"),
]

# Equations are drawn by a copy of MathJax that comes with the site: one file, which has its letters in it.
mathjax = find_spec("sphinx-mathjax-offline")
if mathjax is None or mathjax.origin is None:
    raise ModuleNotFoundError(
        "the site needs sphinx-mathjax-offline: pip install 'invertible-attention[docs]'"
    )
mathjax_path = "tex-svg-full.js"

html_theme = "furo"
html_title = "invertible-attention"
html_static_path = ["_static", str(Path(mathjax.origin).parent / "static" / "mathjax" / mathjax_path)]
html_css_files = ["tables.css"]
html_copy_source = False
html_show_sourcelink = False

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
myst_dmath_double_inline = True

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
# Shapes are no reStructuredText: "*event" would start emphasis.
napoleon_attr_annotations = False
python_maximum_signature_line_length = 90
python_use_unqualified_type_names = True

# "cache": a page is run again when its code changed. A cell that prints a warning fails the build.
nb_execution_mode = "cache"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_output_stderr = "error"
nb_merge_streams = False
nb_number_source_lines = False

# ``make linkcheck`` asks every other site. Anchors on GitHub are made by scripts, which it does not run.
linkcheck_anchors_ignore_for_url = [r"https://github\.com/.*"]
linkcheck_timeout = 20
linkcheck_retries = 3

copybutton_exclude = ".linenos, .gp"
