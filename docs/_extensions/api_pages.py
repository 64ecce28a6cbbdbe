"""Reference pages from the public modules of a package, one page a module, written when the build starts.

A thing is described once, at the module that defines it; modules that pass it on link there.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

from docutils.nodes import document
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

INLINE_CODE = re.compile(r"(?<![`:\w])`([^`]+)`(?!`)")

# Which module describes an exported thing, by its name and identity.
Homes = dict[tuple[str, int], str]
HOMES: Homes = {}


def write_pages(app: Sphinx) -> None:
    """Writes a page for each public module, and touches only pages that changed."""
    folder = Path(app.srcdir) / app.config.api_pages_folder
    folder.mkdir(exist_ok=True)
    names = [name for package in app.config.api_pages_packages for name in public_modules(package)]
    HOMES.update(homes_of(names))
    for name in names:
        path = folder / f"{name}.md"
        text = page(importlib.import_module(name))
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in folder.glob("*.md"):
        if path.stem not in names:
            path.unlink()


def public_modules(package: str) -> list[str]:
    """Names the package and its public modules; the schema describes the generated ones."""
    modules = pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
    return [package, *sorted(info.name for info in modules if is_public(info.name))]


def is_public(name: str) -> bool:
    """Whether neither the module nor a package around it is private or generated."""
    return not any(part.startswith("_") or part.endswith(("_pb2", "_pb2_grpc")) for part in name.split("."))


def exports(module: ModuleType) -> list[str]:
    """The public names of a module; a package may have none."""
    return getattr(module, "__all__", [])


def homes_of(names: list[str]) -> Homes:
    """Says which module describes an exported thing: its own, or else the deepest that exports it."""
    homes: Homes = {}
    for name in sorted(names, key=lambda name: (-name.count("."), name)):
        module = importlib.import_module(name)
        for exported in exports(module):
            value = getattr(module, exported)
            if getattr(value, "__module__", None) == name or (exported, id(value)) not in homes:
                homes[exported, id(value)] = name
    return homes


def page(module: ModuleType) -> str:
    """One module as Markdown: what it defines in full, what it passes on as links."""
    name = module.__name__
    homes = {exported: HOMES[exported, id(getattr(module, exported))] for exported in exports(module)}
    own = [exported for exported, home in homes.items() if home == name]
    passed_on = {exported: home for exported, home in homes.items() if home != name}
    lines = [f"# {name}", "", "```{eval-rst}", f".. automodule:: {name}"]
    lines += ["   :members: " + ", ".join(own)] if own else ["   :no-members:"]
    lines += ["```", ""]
    if passed_on:
        lines += ["Also exported here:", ""]
        lines += [f"* {{py:obj}}`{exported} <{home}.{exported}>`" for exported, home in passed_on.items()]
    return "\n".join(lines) + "\n"


def read_markdown(
    _app: Sphinx, _kind: str, _name: str, _subject: object, _options: object, lines: list[str]
) -> None:
    """Turns code and tables written as Markdown, which editors show, into reStructuredText."""
    converted: list[str] = []
    fence: str | None = None
    table: str | None = None
    for line in lines:
        text = line.lstrip()
        indent = line.removesuffix(text)
        if text.startswith("```"):
            fence = None if fence is not None else indent
            converted += [f"{fence}.. code-block:: python", ""] if fence is not None else [""]
        elif fence is not None:
            converted.append(f"    {line}")
        elif text.startswith("|"):
            if table is None:
                table = indent
                converted += [f"{table}.. list-table::", f"{table}   :header-rows: 1", ""]
            converted += table_row(INLINE_CODE.sub(r"``\1``", text), table)
        else:
            table = None
            converted.append(INLINE_CODE.sub(r"``\1``", line))
    lines[:] = converted


def table_row(text: str, indent: str) -> list[str]:
    """One row of a Markdown table as an item of a list table; the rule below the heading is no row."""
    cells = [cell.strip() for cell in text.strip().strip("|").split("|")]
    if all(set(cell) <= set("-:") for cell in cells):
        return []
    bullets = ["* -", *["  -"] * (len(cells) - 1)]
    return [f"{indent}   {bullet} {cell}" for bullet, cell in zip(bullets, cells, strict=True)]


def skip_tuple_fields(
    _app: Sphinx, _kind: str, _name: str, member: object, _skip: bool, _options: object
) -> bool | None:
    """Leaves out "Alias for field number 0": the signature of a named tuple says as much."""
    return True if inspect.isdatadescriptor(member) and type(member).__name__ == "_tuplegetter" else None


def qualify_names(_app: Sphinx, doctree: document) -> None:
    """Points bare names in docstrings at what they mean in their module.

    Sphinx would take any name that ends alike: `Key.type` for `type`, an error for its namesake in the
    other package.
    """
    for node in doctree.findall(pending_xref):
        if node.get("refdomain") == "py" and node.hasattr("refspecific"):
            # Taken out rather than set to False: Sphinx asks whether it is there.
            del node["refspecific"]
            home = home_of(node["reftarget"], node.get("py:module") or "")
            if home is not None:
                node["reftarget"] = f"{home}.{node['reftarget']}"


def home_of(name: str, module: str) -> str | None:
    """Names the module that describes what `name` means in `module`, or else in its package."""
    value = getattr(importlib.import_module(module), name, None) if module else None
    if (name, id(value)) in HOMES:
        return HOMES[name, id(value)]
    package = module.partition(".")[0]
    candidates = {home for (other, _), home in HOMES.items() if other == name}
    within = {home for home in candidates if home.partition(".")[0] == package}
    return within.pop() if len(within) == 1 else None


def setup(app: Sphinx) -> ExtensionMetadata:
    """Registers the hooks."""
    app.add_config_value("api_pages_packages", [], "env")
    app.add_config_value("api_pages_folder", "api", "env")
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-docstring", read_markdown)
    app.connect("autodoc-skip-member", skip_tuple_fields)
    app.connect("doctree-read", qualify_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
