"""`hsm fsm apply` and `hsm fsm send`: configurations, machines and events, into a service or a database."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

import grpc
from rich.console import Console

from hsm.cli._fsm_options import TargetOptions
from hsm.cli._fsm_target import CallError, Target, checked, open_target
from hsm.fsm.documents import ConfigurationDocument, EventDocument, MachineDocument, read_documents
from persistence.proto.statemachine_pb2 import (
    Configuration,
    EventOutcome,
    EventRequest,
    EventResponse,
    PutFsmRequest,
    Transition,
)

__all__ = ["PENDING", "apply", "new_request", "say_outcome", "send"]

PENDING: Final = 3
"""The exit status if an event has no outcome yet."""

_REFUSED: Final = 1
_FIRST_PAUSE_SECONDS: Final = 0.005
_LONGEST_PAUSE_SECONDS: Final = 0.2


async def apply(
    out: Console, content: bytes, name: str, replace: bool, wait: timedelta, options: TargetOptions
) -> int:
    """Apply the documents of a file one after the other; the greatest exit status of them.

    Raises:
        DocumentError: one of them is none; nothing was applied.
        CallError: the service or the database cannot be used; what was applied stays.
    """
    documents = read_documents(content, name)
    status = 0
    async with open_target(options) as target:
        for document in documents:
            match document:
                case ConfigurationDocument():
                    status = max(status, await _put_configuration(out, target, document.configuration))
                case MachineDocument():
                    status = max(status, await _put_machine(out, target, document, replace=replace))
                case EventDocument():
                    status = max(status, await _send(out, target, document.request, wait))
    return status


async def send(out: Console, request: EventRequest, wait: timedelta, options: TargetOptions) -> int:
    """Send an event, and wait for its outcome for a while.

    Raises:
        CallError: the service or the database cannot be used.
    """
    async with open_target(options) as target:
        return await _send(out, target, request, wait)


def new_request(
    configuration: str,
    machine: str,
    event: str,
    event_id: str,
    details: str,
    originator: str,
    expected_revision: int | None,
) -> EventRequest:
    """An event for a machine."""
    request = EventRequest(config=configuration, id=machine, expected_revision=expected_revision)
    request.event.transition.CopyFrom(Transition(event=event))
    request.event.event_id = event_id
    request.event.details = details
    request.event.originator = originator
    return request


def say_outcome(out: Console, response: EventResponse) -> int:
    """Say what became of an event; the exit status that goes with it."""
    if not response.HasField("outcome"):
        _say(out, f"event {response.event_id}: pending")
        return PENDING
    outcome = response.outcome
    code = EventOutcome.StatusCode.Name(outcome.code)
    details = f": {outcome.details}" if outcome.details else ""
    _say(out, f"event {response.event_id}: {code}{details}")
    return 0 if outcome.code == EventOutcome.Ok else _REFUSED


async def _put_configuration(out: Console, target: Target, configuration: Configuration) -> int:
    try:
        response = await checked(target.put_configuration(configuration))
    except CallError as error:
        if error.code == grpc.StatusCode.ALREADY_EXISTS:
            return await _compare(out, target, configuration)
        return _refused(out, f"configuration {configuration.name}", error)
    _say(out, f"configuration {response.id}: created")
    for warning in response.warnings:
        _say(out, f"configuration {response.id}: warning: {warning}")
    return 0


async def _compare(out: Console, target: Target, configuration: Configuration) -> int:
    """There is one of this identity: is it this one?"""
    identity = f"{configuration.name}:{configuration.version or 'v1'}"
    known = await checked(target.get_configuration(identity))
    wanted = Configuration()
    wanted.CopyFrom(configuration)
    wanted.version = known.version
    if known == wanted:
        _say(out, f"configuration {identity}: exists already")
        return 0
    _say(
        out,
        f"configuration {identity}: exists with another content, and can never change; take a new version",
    )
    return _REFUSED


async def _put_machine(out: Console, target: Target, document: MachineDocument, *, replace: bool) -> int:
    request = PutFsmRequest(id=document.id, fsm=document.machine, expected_revision=None if replace else 0)
    try:
        response = await checked(target.put_machine(request))
    except CallError as error:
        if error.code == grpc.StatusCode.ABORTED and not replace:
            _say(out, f"machine {document.id}: exists already; --replace writes it anew")
            return _REFUSED
        return _refused(out, f"machine {document.id}", error)
    what = "created" if response.fsm.revision == 1 else "replaced"
    _say(out, f"machine {response.id}: {what}, in state {response.fsm.state}")
    return 0


async def _send(out: Console, target: Target, request: EventRequest, wait: timedelta) -> int:
    try:
        response = await checked(target.send_event(request))
    except CallError as error:
        return _refused(out, f"event {request.event.transition.event}", error)
    if not wait:
        _say(out, f"event {response.event_id}: sent")
        return 0
    question = EventRequest(config=request.config, id=response.event_id, namespace=request.namespace)
    loop = asyncio.get_running_loop()
    end = loop.time() + wait.total_seconds()
    pause = _FIRST_PAUSE_SECONDS
    while not response.HasField("outcome") and loop.time() < end:
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        response = await checked(target.get_event_outcome(question))
    return say_outcome(out, response)


def _refused(out: Console, what: str, error: CallError) -> int:
    """Say that something was refused, unless it is the service itself that cannot be used.

    Raises:
        CallError: it is.
    """
    if not error.is_refusal:
        raise error
    _say(out, f"{what}: {error}")
    return _REFUSED


def _say(out: Console, text: str) -> None:
    out.print(text, markup=False, highlight=False, soft_wrap=True)
