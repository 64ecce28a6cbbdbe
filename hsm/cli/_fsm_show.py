"""`hsm fsm get` and `hsm fsm states`: configurations, machines, events and outcomes, as documents."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Iterable, Mapping
from typing import TypeVar

import grpc
import yaml
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console

from hsm.cli._fsm_apply import PENDING
from hsm.cli._fsm_options import TargetOptions
from hsm.cli._fsm_target import CallError, Target, checked, open_target
from hsm.cli._running import tell
from hsm.fsm.documents import API_VERSION
from persistence.proto.statemachine_pb2 import EventOutcome, EventRequest, GetFsmRequest

__all__ = ["configuration", "event", "machine", "outcome", "states"]

T = TypeVar("T")

_NOT_THERE = 1
_PAGE = 1000


async def configuration(out: Console, name: str, as_json: bool, options: TargetOptions) -> int:
    """Show a configuration, or list what there is."""
    async with open_target(options) as target:
        if ":" not in name:
            listed = await checked(target.get_all_configurations(name))
            _print_lines(out, listed.ids, as_json=as_json)
            return 0 if listed.ids or not name else _NOT_THERE
        found = await _found(target.get_configuration(name))
    if found is None:
        return _NOT_THERE
    _print(out, _document("Configuration", found), as_json=as_json)
    return 0


async def machine(out: Console, name: str, id_: str, as_json: bool, options: TargetOptions) -> int:
    """Show a machine."""
    async with open_target(options) as target:
        found = await _found(target.get_machine(GetFsmRequest(config=name, id=id_)))
    if found is None:
        return _NOT_THERE
    _print(out, _document("FiniteStateMachine", found, id_), as_json=as_json)
    return 0


async def event(out: Console, name: str, event_id: str, as_json: bool, options: TargetOptions) -> int:
    """Show an event."""
    async with open_target(options) as target:
        found = await _found(target.get_event(EventRequest(config=name, id=event_id)))
    if found is None:
        return _NOT_THERE
    _print(out, _members(found), as_json=as_json)
    return 0


async def outcome(out: Console, name: str, event_id: str, as_json: bool, options: TargetOptions) -> int:
    """Show what became of an event."""
    async with open_target(options) as target:
        found = await _found(target.get_event_outcome(EventRequest(config=name, id=event_id)))
    if found is None:
        return _NOT_THERE
    if not found.HasField("outcome"):
        _print(out, {"eventId": found.event_id, "code": "pending"}, as_json=as_json)
        return PENDING
    # `Ok` is the default, and would be left out.
    code = {"eventId": found.event_id, "code": EventOutcome.StatusCode.Name(found.outcome.code)}
    _print(out, code | _members(found.outcome), as_json=as_json)
    return 0


async def states(out: Console, name: str, state: str | None, as_json: bool, options: TargetOptions) -> int:
    """Count machines by state, or list those in one."""
    async with open_target(options) as target:
        if state is not None:
            _print_lines(out, await _machines(target, name, state), as_json=as_json)
            return 0
        versions = await checked(target.get_all_configurations(name))
        if not versions.ids:
            tell(CallError(grpc.StatusCode.NOT_FOUND, f"there is no configuration {name!r}"))
            return _NOT_THERE
        names: dict[str, None] = {}
        for config_id in versions.ids:
            names |= dict.fromkeys((await checked(target.get_configuration(config_id))).states)
        counts = {each: len(await _machines(target, name, each)) for each in names}
    if as_json:
        _print(out, counts, as_json=True)
        return 0
    width = max(map(len, counts), default=0)
    for each, count in counts.items():
        out.print(f"{each:<{width}}  {count}", markup=False, highlight=False, soft_wrap=True)
    return 0


async def _machines(target: Target, name: str, state: str) -> list[str]:
    ids: list[str] = []
    after = ""
    while True:
        request = GetFsmRequest(config=name, state=state, page_size=_PAGE, after=after)
        page = await checked(target.get_all_in_state(request))
        ids += page.ids
        if not page.next:
            return ids
        after = page.next


async def _found(call: Awaitable[T]) -> T | None:
    """What a call finds; None if it is not there, which is said.

    Raises:
        CallError: the service or the database cannot be used.
    """
    try:
        return await checked(call)
    except CallError as error:
        if not error.is_refusal:
            raise
        tell(error)
        return None


def _document(kind: str, message: Message, id_: str = "") -> dict[str, object]:
    """A document that `hsm fsm apply` takes."""
    head: dict[str, object] = {"apiVersion": API_VERSION, "kind": kind}
    if id_:
        head["id"] = id_
    return head | {"spec": _members(message)}


def _members(message: Message) -> dict[str, object]:
    members: dict[str, object] = MessageToDict(message)
    return members


def _print(out: Console, value: Mapping[str, object], *, as_json: bool) -> None:
    text = (
        json.dumps(value, indent=2, ensure_ascii=False)
        if as_json
        else yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=100)
    )
    out.print(text.rstrip("\n"), markup=False, highlight=False, soft_wrap=True)


def _print_lines(out: Console, lines: Iterable[str], *, as_json: bool) -> None:
    if as_json:
        out.print(json.dumps(list(lines), ensure_ascii=False), markup=False, highlight=False, soft_wrap=True)
        return
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)
