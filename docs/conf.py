"""Sphinx configuration."""

import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "hsm-toolkit"
author = "The hsm-toolkit authors"
copyright = author
release = importlib.metadata.version(project)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "api_pages"]
exclude_patterns = ["_build", "_extensions", "examples"]
html_theme = "furo"
html_title = project

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

api_pages_packages = ["hsm", "persistence"]
api_pages_folder = "reference/api"
autoclass_signature = "separated"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# The attributes stand in the class's own text; autodoc lists them once more otherwise.
napoleon_use_ivar = True
