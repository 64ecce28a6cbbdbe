"""YAML documents: configurations, machines and events, as people write them. Needs the extra `fsm`.

For example::

    apiVersion: v1alpha
    kind: Configuration
    spec:
      name: orders
      version: v1
      states: [new, paid]
      startingState: new
      transitions:
        - {from: new, to: paid, event: pay}

The keys of `spec` are the fields of the message that `kind` names, written as in the schema
(`starting_state`), as in JSON (`startingState`), or in small letters (`startingstate`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, TypeAlias

import attrs
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from hsm.errors import HSMError
from persistence.proto.statemachine_pb2 import Configuration, EventRequest, FiniteStateMachine

try:
    import yaml
except ImportError as _error:
    raise ImportError(
        "YAML documents need PyYAML: pip install 'hsm-toolkit[fsm]'", name=_error.name
    ) from _error

__all__ = [
    "API_VERSION",
    "ConfigurationDocument",
    "Document",
    "DocumentError",
    "EventDocument",
    "MachineDocument",
    "read_documents",
]

API_VERSION: Final = "v1alpha"
"""What `apiVersion` has to say."""

_KINDS: Final[dict[str, type[Configuration | FiniteStateMachine | EventRequest]]] = {
    "Configuration": Configuration,
    "FiniteStateMachine": FiniteStateMachine,
    "EventRequest": EventRequest,
}
# A short file can stand for any amount of text, by aliases of one that is long.
_MOST_BYTES: Final = 64 * 1024 * 1024
_NULL: Final = "tag:yaml.org,2002:null"
_DIGITS: Final = re.compile(r"[0-9]{1,20}")
# None of the messages has a number that may be negative.
_WHOLE_NUMBERS: Final[dict[int, int]] = {
    FieldDescriptor.TYPE_UINT32: 2**32 - 1,
    FieldDescriptor.TYPE_UINT64: 2**64 - 1,
}


class DocumentError(HSMError):
    """A document is refused; none of its file is used.

    Attributes:
        source: the name of the file.
        line: where in it, from 1.
        reason: what is wrong there.
    """

    def __init__(self, source: str, line: int, reason: str) -> None:
        super().__init__(f"{source}, line {line}: {reason}")
        self.source = source
        self.line = line
        self.reason = reason


@attrs.frozen
class ConfigurationDocument:
    """A configuration. `line` is where its document begins."""

    configuration: Configuration
    line: int


@attrs.frozen
class MachineDocument:
    """A machine; `id` is empty if the store shall choose one."""

    id: str
    machine: FiniteStateMachine
    line: int


@attrs.frozen
class EventDocument:
    """An event for a machine."""

    request: EventRequest
    line: int


Document: TypeAlias = ConfigurationDocument | MachineDocument | EventDocument


def read_documents(text: str | bytes, source: str = "<text>") -> list[Document]:
    """All documents of a file, in their order; an empty one between two `---` is left out.

    Every scalar is taken as it is written: `version: 1.10` is the text "1.10".

    Semantics: fsm-cli of go-statemachine (v0.14), except that a file may hold several documents, and that an
    unknown key is refused there silently.

    Raises:
        DocumentError: the text is no YAML, or a key or value is not what it has to be.
    """
    reader = _Reader(source)
    try:
        # The stubs leave out that an empty document is None.
        nodes: list[yaml.Node | None] = [*yaml.compose_all(text, Loader=yaml.SafeLoader)]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        raise DocumentError(source, line, f"this is no YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise DocumentError(source, 1, f"this is no YAML: {reason}") from error
    except RecursionError as error:
        raise DocumentError(source, 1, "this is nested too deeply") from error
    return [reader.document(node) for node in nodes if node is not None and node.tag != _NULL]


class _Reader:
    """Turns the nodes of a file into messages; nodes, unlike values, know where they stand."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._bytes_left = _MOST_BYTES

    def document(self, node: yaml.Node) -> Document:
        entries = {key.value: value for key, value in self._entries(node, "the document")}
        line = _line(node)
        for name, key in self._names(node):
            if name not in {"apiVersion", "kind", "id", "spec"}:
                raise self._refusal(key, f"unknown key {name!r}: there are apiVersion, kind, id and spec")
        version = self._required(entries, "apiVersion", node)
        if version != API_VERSION:
            raise self._refusal(
                entries["apiVersion"], f"unsupported version {version!r}: only {API_VERSION!r} is known"
            )
        kind = self._required(entries, "kind", node)
        if kind not in _KINDS:
            raise self._refusal(
                entries["kind"], f"unknown kind {kind!r}: there are {', '.join(sorted(_KINDS))}"
            )
        if "spec" not in entries:
            raise self._refusal(node, "there is no spec")
        id_ = self._text(entries["id"], "id") if "id" in entries else ""
        message = _KINDS[kind]()
        self._fill(message, entries["spec"], "spec")
        match message:
            case Configuration():
                own = f"{message.name}:{message.version}"
                if id_ not in {"", own}:
                    raise self._refusal(entries["id"], f"the id is {id_!r}, but the configuration is {own!r}")
                return ConfigurationDocument(message, line)
            case FiniteStateMachine():
                return MachineDocument(id_, message, line)
            case EventRequest():
                if id_ and message.id not in {"", id_}:
                    raise self._refusal(
                        entries["id"], f"the id is {id_!r}, but the event is for {message.id!r}"
                    )
                message.id = message.id or id_
                return EventDocument(message, line)

    def _fill(self, message: Message, node: yaml.Node, where: str) -> None:
        """Set the fields of a message from a mapping."""
        fields = {
            name: field
            for field in message.DESCRIPTOR.fields
            for name in _spellings(field.name, field.json_name)
        }
        seen: set[str] = set()
        for key, value in self._entries(node, where):
            field = fields.get(key.value)
            if field is None:
                known = ", ".join(each.json_name for each in message.DESCRIPTOR.fields)
                raise self._refusal(key, f"unknown key {key.value!r} in {where}: there are {known}")
            if field.name in seen:
                raise self._refusal(key, f"{where} says {field.json_name} twice")
            seen.add(field.name)
            inner = f"{where}.{field.json_name}"
            if field.is_repeated:
                target = getattr(message, field.name)
                for item in self._items(value, inner):
                    if field.message_type is None:
                        target.append(self._scalar(field.type, item, inner))
                    else:
                        self._message(target.add(), item, inner)
            elif field.message_type is None:
                setattr(message, field.name, self._scalar(field.type, value, inner))
            else:
                target = getattr(message, field.name)
                target.SetInParent()
                self._message(target, value, inner)

    def _message(self, message: Message, node: yaml.Node, where: str) -> None:
        if not isinstance(message, Timestamp):
            self._fill(message, node, where)
            return
        text = self._text(node, where)
        try:
            message.FromJsonString(text)
        except ValueError as error:
            raise self._refusal(
                node, f"{where} is {text!r}, no time in the form 2024-05-17T09:30:00Z"
            ) from error

    def _scalar(self, kind: int, node: yaml.Node, where: str) -> str | int | bool:
        text = self._text(node, where)
        if kind == FieldDescriptor.TYPE_BOOL:
            if text not in {"true", "false"}:
                raise self._refusal(node, f"{where} is {text!r}, neither true nor false")
            return text == "true"
        if kind in _WHOLE_NUMBERS:
            most = _WHOLE_NUMBERS[kind]
            if not (_DIGITS.fullmatch(text) and int(text) <= most):
                raise self._refusal(node, f"{where} is {text!r}, no whole number from 0 to {most}")
            return int(text)
        return text

    def _text(self, node: yaml.Node, where: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.tag == _NULL:
            raise self._refusal(node, f"{where} is no text")
        value: str = node.value
        try:
            self._bytes_left -= len(value.encode())
        except UnicodeEncodeError as error:
            raise self._refusal(node, f"{where} is {value[:100]!r}, no Unicode text") from error
        if self._bytes_left < 0:
            raise self._refusal(node, f"the documents have more than {_MOST_BYTES} bytes of text")
        return value

    def _required(self, entries: dict[str, yaml.Node], name: str, node: yaml.Node) -> str:
        if name not in entries:
            raise self._refusal(node, f"there is no {name}")
        return self._text(entries[name], name)

    def _items(self, node: yaml.Node, where: str) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode):
            raise self._refusal(node, f"{where} is no list")
        items: list[yaml.Node] = node.value
        return items

    def _names(self, node: yaml.Node) -> Iterator[tuple[str, yaml.ScalarNode]]:
        """The keys of a mapping, none of them twice."""
        seen: set[str] = set()
        for key, _ in self._entries(node, "the document"):
            if key.value in seen:
                raise self._refusal(key, f"the document says {key.value} twice")
            seen.add(key.value)
            yield key.value, key

    def _entries(self, node: yaml.Node, where: str) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            raise self._refusal(node, f"{where} is no mapping of keys to values")
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._refusal(key, f"a key in {where} is no text")
            yield key, value

    def _refusal(self, node: yaml.Node, reason: str) -> DocumentError:
        return DocumentError(self._source, _line(node), reason)


def _spellings(name: str, json_name: str) -> set[str]:
    return {name, json_name, json_name.lower()}


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1
