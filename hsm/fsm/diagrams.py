"""Diagrams of configurations, and of machines in them: as text for Mermaid and Graphviz, and as SVG.

A final state has a double line, or leads to the end. Of a machine, the state that it is in is filled, and the
moves that it has made say how often.
"""

from __future__ import annotations

import enum
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from hsm.errors import HSMError
from hsm.fsm.configuration import final_states, source_of
from hsm.fsm.errors import MalformedMachineError
from persistence.proto.statemachine_pb2 import Configuration, FiniteStateMachine

__all__ = ["DiagramError", "DiagramFormat", "GraphvizMissingError", "diagram", "dot", "mermaid", "svg"]

_LONGEST_DRAWING: Final = timedelta(seconds=60)
# What has a meaning in the text of a Mermaid diagram, or in HTML, which its labels become.
_SPECIAL: Final = re.compile(r'[#;:"<>&{}\[\]|\\`%\x00-\x1f\x7f]')


class DiagramFormat(enum.Enum):
    """The languages of diagrams."""

    MERMAID = "mermaid"
    DOT = "dot"
    SVG = "svg"


class DiagramError(HSMError):
    """A diagram cannot be drawn."""


class GraphvizMissingError(DiagramError):
    """The program `dot`, which draws SVG, is not installed."""


def diagram(
    configuration: Configuration,
    language: DiagramFormat,
    machine: FiniteStateMachine | None = None,
) -> str:
    """A diagram of a configuration, or of a machine that follows it.

    Raises:
        MalformedMachineError: the machine is in no state of the configuration.
        DiagramError: as `svg`.
    """
    if language is DiagramFormat.MERMAID:
        return mermaid(configuration, machine)
    if language is DiagramFormat.DOT:
        return dot(configuration, machine)
    return svg(configuration, machine)


def mermaid(configuration: Configuration, machine: FiniteStateMachine | None = None) -> str:
    """A state diagram in the language of Mermaid.

    Raises:
        MalformedMachineError: the machine is in no state of the configuration.
    """
    return "".join(f"{line}\n" for line in _mermaid(configuration, machine))


def _mermaid(configuration: Configuration, machine: FiniteStateMachine | None) -> Iterator[str]:
    picture = _Picture(configuration, machine)
    yield "stateDiagram-v2"
    for state, node in picture.nodes.items():
        yield f'    state "{_mermaid_text(state)}" as {node}'
    yield f"    [*] --> {picture.nodes[configuration.starting_state]}"
    for source, target, label in picture.edges():
        yield f"    {source} --> {target} : {_mermaid_text(label)}"
    for state in configuration.states:
        if state in picture.final:
            yield f"    {picture.nodes[state]} --> [*]"
    if machine is not None:
        yield "    classDef current fill:#ffd966,stroke:#7f6000,stroke-width:2px"
        yield f"    class {picture.nodes[machine.state]} current"


def dot(configuration: Configuration, machine: FiniteStateMachine | None = None) -> str:
    """A directed graph in the language of Graphviz.

    Raises:
        MalformedMachineError: the machine is in no state of the configuration.
    """
    return "".join(f"{line}\n" for line in _dot(configuration, machine))


def _dot(configuration: Configuration, machine: FiniteStateMachine | None) -> Iterator[str]:
    picture = _Picture(configuration, machine)
    yield f"digraph {_dot_text(f'{configuration.name}:{configuration.version}')} {{"
    yield "    rankdir=LR;"
    yield '    node [shape=box, style="rounded", fontname="sans-serif"];'
    yield '    edge [fontname="sans-serif"];'
    yield "    start [shape=point];"
    for state, node in picture.nodes.items():
        attributes = [f"label={_dot_text(state)}"]
        if state in picture.final:
            attributes.append("peripheries=2")
        if machine is not None and state == machine.state:
            attributes.append('style="rounded,filled", fillcolor="#ffd966"')
        yield f"    {node} [{', '.join(attributes)}];"
    yield f"    start -> {picture.nodes[configuration.starting_state]};"
    for source, target, label in picture.edges():
        yield f"    {source} -> {target} [label={_dot_text(label)}];"
    yield "}"


def svg(configuration: Configuration, machine: FiniteStateMachine | None = None) -> str:
    """A picture, drawn by the program `dot` of Graphviz.

    Raises:
        MalformedMachineError: the machine is in no state of the configuration.
        GraphvizMissingError: the program is not installed.
        DiagramError: it fails, or takes longer than a minute.
    """
    source = dot(configuration, machine)
    program = shutil.which("dot")
    if program is None:
        raise GraphvizMissingError(
            "the program `dot` is not found; install the package graphviz of the operating system"
        )
    try:
        drawing = subprocess.run(  # noqa: S603  the program is Graphviz, the input its language
            [program, "-Tsvg"],
            input=source,
            capture_output=True,
            check=True,
            encoding="utf-8",
            timeout=_LONGEST_DRAWING.total_seconds(),
        )
    except subprocess.CalledProcessError as error:
        raise DiagramError(f"dot cannot draw {configuration.name!r}: {error.stderr.strip()}") from error
    except subprocess.TimeoutExpired as error:
        raise DiagramError(f"dot takes longer than {_LONGEST_DRAWING} for {configuration.name!r}") from error
    return drawing.stdout


class _Picture:
    """What all languages draw: nodes with names that any of them takes, and edges with labels."""

    def __init__(self, configuration: Configuration, machine: FiniteStateMachine | None) -> None:
        self._configuration = configuration
        self._machine = machine
        # Also states that are named without being declared, which only a checked configuration has not.
        named = [configuration.starting_state, *configuration.states]
        for each in configuration.transitions:
            named += [source_of(each), each.to]
        self.nodes = {state: f"s{number}" for number, state in enumerate(dict.fromkeys(named))}
        self.final = final_states(configuration)
        if machine is not None and machine.state not in self.nodes:
            raise MalformedMachineError(
                f"state {machine.state!r} is not one of {configuration.name}:{configuration.version}"
            )

    def edges(self) -> Iterator[tuple[str, str, str]]:
        """Source, destination and label of each transition."""
        made = Counter(
            (source_of(event.transition), event.transition.to, event.transition.event)
            for event in (self._machine.history if self._machine else ())
        )
        for each in self._configuration.transitions:
            times = made[source_of(each), each.to, each.event]
            label = f"{each.event} ({times}x)" if times else each.event
            yield self.nodes[source_of(each)], self.nodes[each.to], label


def _mermaid_text(text: str) -> str:
    """A text that may hold anything: what Mermaid would misunderstand is given by its number."""
    return _SPECIAL.sub(lambda found: " " if found[0] < " " else f"#{ord(found[0])};", text)


def _dot_text(text: str) -> str:
    """A text that may hold anything, between quotes."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\x00-\x1f]", " ", escaped) + '"'
