"""Reception: requests that came with messages go to the processor, and those without a destination do not."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import Final

from hsm.fsm.domain import check_names, check_request
from hsm.fsm.errors import (
    AlreadyExistsError,
    ConfigurationNotFoundError,
    EventError,
    InvalidDataError,
    InvalidIdentifierError,
)
from hsm.fsm.outcomes import outcome_of
from hsm.fsm.processor import EventProcessor
from hsm.fsm.service.errors import PoisonError
from hsm.fsm.service.publishing import OutcomePublisher
from hsm.fsm.store import EventStore
from persistence.proto.statemachine_pb2 import EventOutcome, EventRequest, EventResponse

__all__ = ["Reception"]

_LOG: Final = logging.getLogger("hsm.fsm.service.intake")
_MOST_PUBLISHED_BYTES: Final = 64 * 1024


class Reception:
    """An `EventSink` in front of a processor.

    Nobody waits for the answer to a message. So the outcome of a request that names no machine is stored
    where its sender can ask for it, and published, before the message goes to the dead letters.
    """

    def __init__(
        self, store: EventStore, processor: EventProcessor, publisher: OutcomePublisher | None, namespace: str
    ) -> None:
        self._store = store
        self._processor = processor
        self._publisher = publisher
        self._namespace = namespace

    async def accept(self, request: EventRequest) -> Awaitable[EventResponse]:
        """See `EventSink`."""
        if request.namespace not in {"", self._namespace}:
            raise PoisonError(f"the message is for namespace {request.namespace!r}, not {self._namespace!r}")
        try:
            check_request(request)
            check_names(request)
            return await self._processor.accept(request)
        except EventError as error:
            await self._refuse(request, error)
            raise PoisonError(str(error)) from error
        except ConfigurationNotFoundError as error:
            message = f"there is no configuration {request.config!r}"
            outcome = EventOutcome(
                code=EventOutcome.ConfigurationNotFound, details=message, id=request.id, config=request.config
            )
            await self._publish(request, outcome)
            raise PoisonError(message) from error
        except (AlreadyExistsError, InvalidDataError, InvalidIdentifierError) as error:
            raise PoisonError(str(error)) from error

    async def _refuse(self, request: EventRequest, error: EventError) -> None:
        outcome = outcome_of(error, id=request.id, config=request.config)
        event = request.event
        if request.config:
            try:
                await self._store.put_event(event, request.config)
                await self._store.add_event_outcome(event.event_id, request.config, outcome)
            except ConfigurationNotFoundError:
                _LOG.warning("event %s without a destination names no configuration", event.event_id)
            except AlreadyExistsError as known:
                _LOG.warning(
                    "event %s without a destination has the id of another: %s", event.event_id, known
                )
            except (InvalidDataError, InvalidIdentifierError) as unusable:
                _LOG.warning("an event without a destination cannot be stored: %s", unusable)
        await self._publish(request, outcome)

    async def _publish(self, request: EventRequest, outcome: EventOutcome) -> None:
        if self._publisher is None:
            return
        response = EventResponse(event_id=request.event.event_id, outcome=outcome)
        if response.ByteSize() > _MOST_PUBLISHED_BYTES:
            # A queue that cannot carry it would hold up what follows for ever. The dead letter has it all.
            _LOG.warning("the outcome of an event is not published, as its names are too long")
            return
        await self._publisher.publish(response)
