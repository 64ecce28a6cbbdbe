"""Diagrams say what the configuration says, whatever its states are called."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings, strategies as st

from hsm.fsm import (
    ConfiguredStateMachine,
    DiagramError,
    DiagramFormat,
    GraphvizMissingError,
    MalformedMachineError,
    diagram,
    dot,
    mermaid,
    new_event,
    svg,
)
from persistence.proto.statemachine_pb2 import FiniteStateMachine
from tests.support.fsm.configurations import configuration, orders

MISSING = "graphviz is not installed: it has the program `dot`"

moved = ConfiguredStateMachine(configuration([("a", "b", "go"), ("b", "a", "back"), ("b", "c", "end")]))
for name in ("go", "back", "go"):
    moved.send_event(new_event(name))


@pytest.fixture
def graphviz() -> None:
    if shutil.which("dot"):
        return
    if os.environ.get("HSM_REQUIRE_SERVERS"):
        pytest.fail(MISSING, pytrace=False)
    pytest.skip(MISSING)


def test_mermaid_names_states_and_events() -> None:
    assert mermaid(configuration([("new order", "done", "pay")])) == (
        "stateDiagram-v2\n"
        '    state "new order" as s0\n'
        '    state "done" as s1\n'
        "    [*] --> s0\n"
        "    s0 --> s1 : pay\n"
        "    s1 --> [*]\n"
    )


def test_mermaid_shows_where_a_machine_is_and_was() -> None:
    text = mermaid(moved.configuration, moved.machine)

    assert "s0 --> s1 : go (2x)" in text
    assert "s1 --> s0 : back (1x)" in text
    assert "s1 --> s2 : end\n" in text
    assert "class s1 current" in text


def test_dot_names_states_and_events() -> None:
    text = dot(configuration([("new order", "done", "pay")]))

    assert text.startswith('digraph "test:v1" {\n')
    assert 's0 [label="new order"];' in text
    assert 's1 [label="done", peripheries=2];' in text
    assert "start -> s0;" in text
    assert 's0 -> s1 [label="pay"];' in text


def test_dot_shows_where_a_machine_is_and_was() -> None:
    text = dot(moved.configuration, moved.machine)

    assert 's0 -> s1 [label="go (2x)"];' in text
    assert re.search(r's1 \[label="b", style="rounded,filled"', text)


@pytest.mark.parametrize("language", [mermaid, dot])
def test_machine_of_another_configuration_is_refused(language: object) -> None:
    assert callable(language)
    with pytest.raises(MalformedMachineError, match="'lost' is not one of orders:v1"):
        language(orders(), FiniteStateMachine(config_id="orders:v1", state="lost"))


NASTY = 'a"b\\c#d;e:f<g>&{h}|[i]`%\n'


def test_text_of_a_state_does_not_break_out_of_mermaid() -> None:
    lines = mermaid(configuration([(NASTY, "b", NASTY)])).splitlines()

    assert len(lines) == 6
    label = re.fullmatch(r'    state "([^"]*)" as s0', lines[1])
    assert label
    assert not set(label[1].replace(";", "").replace("#", "")) & set('"\\:<>&{}|[]`%')
    assert "#34;" in label[1]


@pytest.mark.usefixtures("graphviz")
def test_svg_is_a_picture_with_every_state_and_event() -> None:
    picture = ET.fromstring(svg(orders()))

    texts = {"".join(element.itertext()) for element in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {*orders().states} <= texts
    assert {"accept", "ship", "deliver", "return"} <= texts


@pytest.mark.usefixtures("graphviz")
def test_svg_shows_the_state_of_a_machine() -> None:
    assert "#ffd966" in svg(moved.configuration, moved.machine)
    assert "#ffd966" not in svg(moved.configuration)


@pytest.mark.usefixtures("graphviz")
@settings(max_examples=8, deadline=None)
@given(
    st.lists(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), min_size=2, max_size=4, unique=True
    )
)
def test_graphviz_understands_whatever_states_are_called(states: list[str]) -> None:
    given = configuration([(states[0], each, each) for each in states[1:]])

    answer = subprocess.run(["dot", "-Tplain"], input=dot(given).encode(), capture_output=True, check=True)

    nodes = [line for line in answer.stdout.splitlines() if line.startswith(b"node ")]
    assert len(nodes) == len(states) + 1


def test_missing_graphviz_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)

    with pytest.raises(GraphvizMissingError, match="install the package graphviz"):
        svg(orders())


def test_failing_graphviz_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "/bin/false")

    with pytest.raises(DiagramError, match="dot cannot draw 'orders'"):
        svg(orders())


@pytest.mark.parametrize(("format", "start"), [("mermaid", "stateDiagram-v2"), ("dot", "digraph")])
def test_format_chooses_the_language(format: str, start: str) -> None:  # noqa: A002
    assert diagram(orders(), DiagramFormat(format)).startswith(start)


@pytest.mark.usefixtures("graphviz")
def test_format_svg_is_a_picture() -> None:
    assert "<svg" in diagram(orders(), DiagramFormat.SVG)
