"""YAML documents: what is read, and that everything else is refused with its line and name."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

import pytest
from hypothesis import given, strategies as st

from hsm.fsm.documents import (
    ConfigurationDocument,
    DocumentError,
    EventDocument,
    MachineDocument,
    read_documents,
)
from tests.support.fsm.configurations import configuration

CONFIGURATION = """\
apiVersion: v1alpha
kind: Configuration
spec:
  name: orders
  version: v1
  states: [new, paid]
  {key}: new
  transitions:
    - from: new
      to: paid
      event: pay
"""
MACHINE = """\
apiVersion: v1alpha
kind: FiniteStateMachine
id: o1
spec:
  {key}: orders:v1
"""
EVENT = """\
apiVersion: v1alpha
kind: EventRequest
spec:
  config: orders
  id: o1
  event:
    {key}: e1
    timestamp: 2024-05-17T09:30:00Z
    transition: {{event: pay}}
    originator: me
    details: '{{"amount": 7}}'
"""
MEANT = configuration([("new", "paid", "pay")], name="orders")


@pytest.mark.parametrize("key", ["startingState", "starting_state", "startingstate"])
def test_configuration(key: str) -> None:
    (document,) = read_documents(CONFIGURATION.format(key=key))

    assert document == ConfigurationDocument(MEANT, 1)


@pytest.mark.parametrize("key", ["configId", "config_id", "configid"])
def test_machine(key: str) -> None:
    (document,) = read_documents(MACHINE.format(key=key))

    assert isinstance(document, MachineDocument)
    assert (document.id, document.machine.config_id, document.machine.state) == ("o1", "orders:v1", "")


@pytest.mark.parametrize("key", ["eventId", "event_id", "eventid"])
def test_event(key: str) -> None:
    (document,) = read_documents(EVENT.format(key=key))

    assert isinstance(document, EventDocument)
    request = document.request
    assert (request.config, request.id, request.event.event_id) == ("orders", "o1", "e1")
    assert request.event.transition.event == "pay"
    assert request.event.timestamp.ToDatetime(UTC) == datetime(2024, 5, 17, 9, 30, tzinfo=UTC)
    assert (request.event.originator, request.event.details) == ("me", '{"amount": 7}')


def test_several_in_a_file() -> None:
    text = f"---\n{CONFIGURATION.format(key='startingState')}---\n---\n{MACHINE.format(key='configId')}"

    documents = read_documents(text)

    assert [type(each) for each in documents] == [ConfigurationDocument, MachineDocument]
    assert [each.line for each in documents] == [2, 15]


@pytest.mark.parametrize("text", ["", "---\n", "# nothing\n", b"\xef\xbb\xbf"])
def test_empty_file(text: str | bytes) -> None:
    assert read_documents(text) == []


def test_scalars_are_taken_as_they_are_written() -> None:
    text = CONFIGURATION.format(key="startingState").replace("version: v1", "version: 1.10")

    (document,) = read_documents(text)

    assert isinstance(document, ConfigurationDocument)
    assert document.configuration.version == "1.10"


def test_id_of_the_document_is_the_machine_of_an_event() -> None:
    text = EVENT.format(key="eventId").replace("  id: o1\n", "").replace("spec:", "id: o2\nspec:")

    (document,) = read_documents(text)

    assert isinstance(document, EventDocument)
    assert document.request.id == "o2"


def test_our_additions() -> None:
    text = EVENT.format(key="eventId") + "  expectedRevision: 3\n"

    (document,) = read_documents(text)

    assert isinstance(document, EventDocument)
    assert document.request.expected_revision == 3


HEAD = "apiVersion: v1alpha\nkind: Configuration\n"


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("kind: Configuration\nspec: {}", 1, "there is no apiVersion"),
        ("apiVersion: v2\nkind: Configuration\nspec: {}", 1, "unsupported version 'v2'"),
        ("apiVersion: v1alpha\nspec: {}", 1, "there is no kind"),
        ("apiVersion: v1alpha\nkind: Machine\nspec: {}", 2, "unknown kind 'Machine'"),
        (HEAD, 1, "there is no spec"),
        (f"{HEAD}sepc: {{}}", 3, "unknown key 'sepc'"),
        (f"{HEAD}spec: {{}}\nspec: {{}}", 4, "says spec twice"),
        (f"{HEAD}spec: []", 3, "spec is no mapping"),
        (f"{HEAD}spec:\n  name: x\n  startState: y", 5, "unknown key 'startState' in spec"),
        (f"{HEAD}spec:\n  name: x\n  name: y", 5, "spec says name twice"),
        (f"{HEAD}spec:\n  starting_state: x\n  startingState: y", 5, "spec says startingState twice"),
        (f"{HEAD}spec:\n  name: [x]", 4, "spec.name is no text"),
        (f"{HEAD}spec:\n  name:", 4, "spec.name is no text"),
        (f'{HEAD}spec:\n  name: "\\ud800"', 4, "spec.name is '\\ud800', no Unicode text"),
        ('apiVersion: v1alpha\nkind: "\\udfff"\nspec: {}', 2, "kind is '\\udfff', no Unicode text"),
        (f"{HEAD}spec:\n  states: new", 4, "spec.states is no list"),
        (f"{HEAD}spec:\n  states:\n    - a\n    - {{b: c}}", 6, "spec.states is no text"),
        (f"{HEAD}spec:\n  transitions:\n    - form: a", 5, "unknown key 'form' in spec.transitions"),
        (f"{HEAD}spec:\n  ? [a]\n  : b", 4, "a key in spec is no text"),
        (f"{HEAD}spec:\n  <<: {{name: x}}", 4, "unknown key '<<'"),
        (f"{HEAD}id: other\nspec:\n  name: orders\n  version: v1", 3, "the configuration is 'orders:v1'"),
        ("- a\n- b", 1, "the document is no mapping"),
        ("just text", 1, "the document is no mapping"),
        ("a: [1", 1, "this is no YAML"),
        ("a: b\n  c: d", 2, "this is no YAML"),
        ("a: *unknown", 1, "this is no YAML"),
        (
            EVENT.format(key="eventId").replace("2024-05-17T09:30:00Z", "yesterday"),
            8,
            "spec.event.timestamp is 'yesterday'",
        ),
        (EVENT.format(key="eventId") + "  expectedRevision: -1\n", 12, "no whole number"),
        (EVENT.format(key="eventId") + f"  expectedRevision: {2**64}\n", 12, "no whole number"),
        (EVENT.format(key="eventId").replace("spec:", "id: o2\nspec:"), 3, "the event is for 'o1'"),
    ],
)
def test_refused_with_line_and_name(text: str, line: int, reason: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read_documents(text, "machines.yaml")

    assert (caught.value.source, caught.value.line) == ("machines.yaml", line)
    assert reason in caught.value.reason
    assert str(caught.value).startswith(f"machines.yaml, line {line}: ")


def test_nothing_but_data_is_read() -> None:
    with pytest.raises(DocumentError):
        read_documents("!!python/object/apply:os.system ['true']")


def test_nesting_without_end_is_refused() -> None:
    with pytest.raises(DocumentError):
        read_documents("[" * 5_000)


def test_aliases_do_not_make_a_short_file_long() -> None:
    """Nor do they go round in circles."""
    events = ", ".join(["{details: *text}"] * 20_000)
    text = f"""\
apiVersion: v1alpha
kind: FiniteStateMachine
spec:
  state: &text {"x" * 20_000}
  history: [{events}]
"""
    with pytest.raises(DocumentError, match="more than 67108864 bytes of text"):
        read_documents(text)
    with pytest.raises(DocumentError, match=r"spec.history.details is no text"):
        read_documents(text.replace(f"[{events}]", "&round [{details: *round}]"))


@given(st.text() | st.binary())
def test_any_text_is_read_or_refused(text: str | bytes) -> None:
    with contextlib.suppress(DocumentError):
        read_documents(text)
