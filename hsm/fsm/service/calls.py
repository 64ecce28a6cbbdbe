"""Calls: what the service does, in messages; how they travel is somebody else's business."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final, Protocol

from hsm.fsm.configuration import check_id, check_valid, identity_of, with_defaults
from hsm.fsm.domain import ConfiguredStateMachine, check_names
from hsm.fsm.errors import (
    AlreadyExistsError,
    ConfigurationNotFoundError,
    NotFoundError,
    OutcomePendingError,
)
from hsm.fsm.keys import DEFAULT_NAMESPACE
from hsm.fsm.service.errors import CallRefusedError, Refusal
from hsm.fsm.store import StoreManager
from persistence.proto.statemachine_pb2 import (
    Configuration,
    Event,
    EventRequest,
    EventResponse,
    FiniteStateMachine,
    GetFsmRequest,
    ListResponse,
    PutFsmRequest,
    PutResponse,
)

__all__ = ["Calls", "EventSubmission"]

_PAGE: Final = 500
_MOST_WARNINGS: Final = 100


class EventSubmission(Protocol):
    """What takes on events; an `EventProcessor` does."""

    async def submit(self, request: EventRequest) -> EventResponse:
        """Accept an event durably; with its outcome, if it came before and has one."""
        ...


class Calls:
    """The operations of the service on a store. Listings are sorted.

    Each may raise, besides what it lists, what the store raises; a call that is refused has changed nothing.

    Semantics: the gRPC service of go-statemachine (v0.14.0), except that a store that fails is told apart
    from what is not there, a pending event from an unknown one, and that listings come in pages on demand.
    """

    def __init__(
        self, store: StoreManager, events: EventSubmission, *, namespace: str = DEFAULT_NAMESPACE
    ) -> None:
        self._store = store
        self._events = events
        self._namespace = namespace

    async def put_configuration(self, configuration: Configuration) -> PutResponse:
        """Store a configuration for ever; without a version it is "v1".

        Raises:
            MalformedConfigurationError: it does not describe machines.
            AlreadyExistsError: there is one of this name and version, be it the same.
        """
        complete = with_defaults(configuration)
        # A large one takes a while, and others need not wait for it.
        warnings = await asyncio.to_thread(check_valid, complete)
        identity = identity_of(complete)
        try:
            await self._store.put_config(complete)
        except AlreadyExistsError as error:
            raise AlreadyExistsError(f"configuration {identity}") from error
        messages = [each.message for each in warnings[:_MOST_WARNINGS]]
        if more := len(warnings) - len(messages):
            messages.append(f"and {more} more warnings")
        return PutResponse(id=identity, config=complete, warnings=messages)

    async def get_configuration(self, config_id: str) -> Configuration:
        """The configuration `name:version`.

        Raises:
            CallRefusedError: there is none.
        """
        _check(config_id, "id of the configuration")
        try:
            return await self._store.get_config(config_id)
        except NotFoundError as error:
            raise _not_found(f"there is no configuration {config_id!r}") from error

    async def get_all_configurations(self, name: str) -> ListResponse:
        """The names of all configurations, or `name:version` of all versions of one."""
        if not name:
            return ListResponse(ids=await self._store.get_all_configs())
        _check(name, "name of the configuration")
        return ListResponse(ids=await self._store.get_all_versions(name))

    async def stream_all_configurations(self, name: str) -> AsyncIterator[Configuration]:
        """All versions of a configuration; none if the name is unknown.

        Raises:
            CallRefusedError: there is no name.
        """
        _check(name, "name of the configuration")
        for config_id in await self._store.get_all_versions(name):
            yield await self._store.get_config(config_id)

    async def put_machine(self, request: PutFsmRequest) -> PutResponse:
        """Create a machine, or replace it; without an id it gets one, without a state the starting state.

        Raises:
            CallRefusedError: there is no machine in the request, or no such configuration.
            MalformedMachineError: the configuration has no such state.
            RevisionMismatchError: the machine is not at the expected revision.
        """
        if not request.HasField("fsm"):
            raise _invalid("the state machine is missing")
        machine = FiniteStateMachine()
        machine.CopyFrom(request.fsm)
        id_ = request.id or str(uuid.uuid4())
        check_id(id_, "id of the machine")
        _check(machine.config_id, "configuration of the state machine")
        try:
            configuration = await self._store.get_config(machine.config_id)
        except ConfigurationNotFoundError as error:
            message = f"there is no configuration {machine.config_id!r}"
            raise CallRefusedError(Refusal.FAILED_PRECONDITION, message) from error
        machine.state = machine.state or configuration.starting_state
        ConfiguredStateMachine(configuration, machine).check_machine()
        expected = request.expected_revision if request.HasField("expected_revision") else None
        machine.revision = await self._store.put_state_machine(id_, machine, expected_revision=expected)
        return PutResponse(id=id_, fsm=machine)

    async def get_machine(self, request: GetFsmRequest) -> FiniteStateMachine:
        """A machine with its history.

        Raises:
            CallRefusedError: configuration or id is missing, or there is no such machine.
        """
        _check(request.config, "name of the configuration")
        _check(request.id, "id of the state machine")
        try:
            return await self._store.get_state_machine(request.id, request.config)
        except NotFoundError as error:
            raise _not_found(f"there is no machine {request.id!r} of {request.config!r}") from error

    async def get_all_in_state(self, request: GetFsmRequest) -> ListResponse:
        """Ids of the machines in a state, or without a state of all; in pages if a size is given.

        Raises:
            CallRefusedError: the configuration is missing, or an id is given.
        """
        _check_listing(request)
        if not request.page_size:
            return ListResponse(ids=[id_ async for id_ in self._ids(request)])
        ids = await self._page(request, request.after, request.page_size + 1)
        more = len(ids) > request.page_size
        return ListResponse(ids=ids[: request.page_size], next=ids[request.page_size - 1] if more else "")

    async def stream_all_in_state(self, request: GetFsmRequest) -> AsyncIterator[PutResponse]:
        """The machines that `get_all_in_state` lists, except those that leave the state meanwhile.

        Raises:
            CallRefusedError: as `get_all_in_state`.
        """
        _check_listing(request)
        left = request.page_size or None
        async for id_ in self._ids(request):
            with suppress(NotFoundError):
                machine = await self._store.get_state_machine(id_, request.config)
                if request.state in {"", machine.state}:
                    yield PutResponse(id=id_, fsm=machine)
                    left = None if left is None else left - 1
            if left == 0:
                return

    async def send_event(self, request: EventRequest) -> EventResponse:
        """Accept an event, which is durable then; with its outcome, if it came before and has one.

        Without an id or a time it gets one; its id is in the answer.

        Raises:
            EventError: the request does not name a machine, a configuration or an event.
            InvalidIdentifierError: one of the names is no identifier.
            CallRefusedError: there is no configuration of the name, or the event is for another namespace
                than the service's.
        """
        self._check_namespace(request)
        check_names(request)
        try:
            return await self._events.submit(request)
        except ConfigurationNotFoundError as error:
            message = f"there is no configuration {request.config!r}"
            raise CallRefusedError(Refusal.FAILED_PRECONDITION, message) from error

    async def get_event_outcome(self, request: EventRequest) -> EventResponse:
        """What became of the event whose id is in `request.id`; without an outcome while it is pending.

        Raises:
            CallRefusedError: configuration or event id is missing, or there is no such event.
        """
        self._check_event(request)
        try:
            outcome = await self._store.get_outcome_for_event(request.id, request.config)
        except OutcomePendingError:
            return EventResponse(event_id=request.id)
        except NotFoundError as error:
            raise _no_event(request) from error
        return EventResponse(event_id=request.id, outcome=outcome)

    async def get_event(self, request: EventRequest) -> Event:
        """The event whose id is in `request.id`, as it was sent.

        Raises:
            CallRefusedError: configuration or event id is missing, or there is no such event.
        """
        self._check_event(request)
        try:
            return await self._store.get_event(request.id, request.config)
        except NotFoundError as error:
            raise _no_event(request) from error

    async def check_health(self) -> None:
        """Return if the store answers.

        Raises:
            FSMStoreError: it does not.
        """
        await self._store.health()

    def _check_event(self, request: EventRequest) -> None:
        self._check_namespace(request)
        _check(request.config, "name of the configuration")
        _check(request.id, "id of the event")

    def _check_namespace(self, request: EventRequest) -> None:
        if request.namespace not in {"", self._namespace}:
            raise _invalid(f"this service serves namespace {self._namespace!r}, not {request.namespace!r}")

    async def _ids(self, request: GetFsmRequest) -> AsyncIterator[str]:
        after = request.after
        while page := await self._page(request, after, _PAGE):
            for id_ in page:
                yield id_
            if len(page) < _PAGE:
                return
            after = page[-1]

    async def _page(self, request: GetFsmRequest, after: str, limit: int) -> list[str]:
        if request.state:
            found = await self._store.get_all_in_state(
                request.config, request.state, after=after, limit=limit
            )
        else:
            found = await self._store.get_all_machines(request.config, after=after, limit=limit)
        return list(found)


def _check_listing(request: GetFsmRequest) -> None:
    _check(request.config, "name of the configuration")
    if request.id:
        raise _invalid("a listing takes a state, and no id")
    for text, what in ((request.state, "state"), (request.after, "id to begin after")):
        if text:
            check_id(text, what)


def _no_event(request: EventRequest) -> CallRefusedError:
    return _not_found(f"there is no event {request.id!r} of {request.config!r}")


def _check(text: str, what: str) -> None:
    if not text:
        raise _invalid(f"the {what} is missing")
    check_id(text, what)


def _invalid(message: str) -> CallRefusedError:
    return CallRefusedError(Refusal.INVALID_ARGUMENT, message)


def _not_found(message: str) -> CallRefusedError:
    return CallRefusedError(Refusal.NOT_FOUND, message)
