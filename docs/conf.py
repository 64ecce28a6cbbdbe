"""Sphinx configuration; the reference pages are written from the modules when the build starts."""

import importlib
import importlib.metadata
import pkgutil
from pathlib import Path
from types import ModuleType

from sphinx.application import Sphinx

project = "hsm-toolkit"
author = "The hsm-toolkit authors"
copyright = author
release = importlib.metadata.version(project)

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = project

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autoclass_signature = "separated"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Docstrings name parameters and code in single backticks, as Markdown does.
default_role = "code"

API = Path(__file__).parent / "reference" / "api"
PACKAGES = ("hsm", "persistence")


def public_modules(package: str) -> list[str]:
    """Names the package and its public modules; generated protobuf modules are described by their schema."""
    modules = pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
    return [package, *sorted(info.name for info in modules if is_public(info.name))]


def is_public(name: str) -> bool:
    """Whether neither the module nor a package around it is private or generated."""
    return not any(part.startswith("_") or part.endswith("_pb2") for part in name.split("."))


def owners(names: list[str]) -> dict[tuple[str, int], str]:
    """Says for each exported thing which module describes it: the deepest that exports it."""
    found: dict[tuple[str, int], str] = {}
    for name in sorted(names, key=lambda name: (-name.count("."), name)):
        module = importlib.import_module(name)
        for exported in module.__all__:
            value = getattr(module, exported)
            home = getattr(value, "__module__", None)
            if home == name or (exported, id(value)) not in found:
                found[exported, id(value)] = name
    return found


def page(module: ModuleType, described_by: dict[tuple[str, int], str]) -> str:
    """One module as Markdown: what it defines in full, what it passes on as links."""
    name = module.__name__
    homes = {exported: described_by[exported, id(getattr(module, exported))] for exported in module.__all__}
    own = [exported for exported, home in homes.items() if home == name]
    passed_on = {exported: home for exported, home in homes.items() if home != name}
    lines = [f"# {name}", "", "```{eval-rst}", f".. automodule:: {name}"]
    lines += ["   :members: " + ", ".join(own)] if own else ["   :no-members:"]
    lines += ["```", ""]
    if passed_on:
        lines += ["Also exported here:", ""]
        lines += [f"* {{py:obj}}`{exported} <{home}.{exported}>`" for exported, home in passed_on.items()]
    return "\n".join(lines) + "\n"


def write_api_pages(_: Sphinx) -> None:
    """Writes a page for each public module, and touches only pages that changed."""
    API.mkdir(exist_ok=True)
    names = [name for package in PACKAGES for name in public_modules(package)]
    described_by = owners(names)
    for name in names:
        path = API / f"{name}.md"
        text = page(importlib.import_module(name), described_by)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in API.glob("*.md"):
        if path.stem not in names:
            path.unlink()


def setup(app: Sphinx) -> None:
    """Registers the hook."""
    app.connect("builder-inited", write_api_pages)
