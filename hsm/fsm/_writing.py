"""Machines that are put, reset, deleted and listed, apart from what events do to them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

from hsm.fsm._configurations import Configurations
from hsm.fsm._machines import MARK, Change, Held, Machines, history_deletes
from hsm.fsm._rows import (
    DELETED,
    check_stored_id,
    decode,
    deleted_machine,
    history_key,
    machine_key,
    machine_partition,
    state_key,
    state_prefix,
)
from hsm.fsm._turns import Turns, pause_after
from hsm.fsm.errors import InvalidDataError, NotFoundError, RevisionMismatchError, TooManyAttemptsError
from hsm.fsm.keys import CONFIG_ID_SEPARATOR
from persistence.errors import ETagMismatchError
from persistence.options import prefix_end
from persistence.proto.fsm_pb2 import MachineRow
from persistence.proto.statemachine_pb2 import Event, FiniteStateMachine
from persistence.store import DeleteRequest, EngineStore, Operation, SetRequest

if TYPE_CHECKING:
    from hsm.fsm.database import DatabaseOptions

__all__ = ["Writing"]

T = TypeVar("T")

_logger: Final = logging.getLogger(__name__)


class Writing:
    """Reads and writes the machines of a namespace."""

    def __init__(
        self,
        store: EngineStore,
        namespace: str,
        machines: Machines,
        configurations: Configurations,
        turns: Turns,
        options: DatabaseOptions,
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._machines = machines
        self._configurations = configurations
        self._turns = turns
        self._options = options

    async def get(self, id_: str, name: str) -> FiniteStateMachine:
        """A machine with its history, both of one moment."""
        partition = self._partition(name)
        while True:
            held = await self._machines.look_at(partition, id_)
            if held is None:
                raise NotFoundError(f"{name}#{id_}")
            row = held.row
            machine = FiniteStateMachine(
                config_id=row.config_id,
                state=row.state,
                revision=row.revision,
                history_dropped=row.history_dropped,
            )
            if row.history_first == row.history_next:
                return machine
            start, end = history_key(id_, row.history_first), history_key(id_, row.history_next)
            async for item in self._store.scan(partition, start, end):
                machine.history.append(decode(Event.FromString, item.value, f"history {item.key!r}"))
            if len(machine.history) == row.history_next - row.history_first:
                return machine
            # Some of it was swept while it was read, because the machine was reset; or it is damaged.
            again = await self._machines.look_at(partition, id_)
            if again is not None and again.etag == held.etag:
                raise InvalidDataError(f"machine {id_!r} of {name!r} lacks events of its history")

    async def put(self, id_: str, machine: FiniteStateMachine, expected: int | None) -> int:
        """Create or replace a machine; its revision."""
        name, separator, version = machine.config_id.partition(CONFIG_ID_SEPARATOR)
        if not name or not separator or not version:
            raise InvalidDataError(f"machine {id_!r} names no configuration: {machine.config_id!r}")
        check_stored_id(id_, "machine id")
        check_stored_id(machine.state, f"state of machine {id_!r}")

        async def replace(change: Change) -> None:
            change.row.config_id = machine.config_id
            change.row.state = machine.state
            change.forget_history()
            change.row.history_dropped = machine.history_dropped
            for event in machine.history:
                change.add_event(event)
            if self._options.history_cap is not None:
                change.cap_history(self._options.history_cap)

        held = await self._change(id_, name, expected, replace)
        return held.row.revision

    async def reset(self, id_: str, name: str, expected: int | None) -> FiniteStateMachine:
        """Put a machine back to the start."""

        async def start_again(change: Change) -> None:
            if change.is_new:
                raise NotFoundError(f"{name}#{id_}")
            moves = await self._configurations.moves(change.row.config_id)
            change.row.state = moves.configuration.starting_state
            change.forget_history()

        row = (await self._change(id_, name, expected, start_again)).row
        return FiniteStateMachine(config_id=row.config_id, state=row.state, revision=row.revision)

    async def delete(self, id_: str, name: str, expected: int | None) -> None:
        """Delete a machine with its history; a long one afterwards."""
        partition = self._partition(name)

        async def attempt() -> tuple[MachineRow, str | None]:
            held = await self._machines.read(partition, id_)
            if held is None:
                raise NotFoundError(f"{name}#{id_}")
            _check_revision(f"{name}#{id_}", held, expected)
            change = Change(partition, id_, held, first_number=0)
            operations, left = change.deletion(self._store.limits.operations)
            await self._store.multi(operations)
            self._machines.forget((partition, id_))
            return held.row, left

        row, left = await self._in_turn(id_, name, attempt)
        if left is not None:
            await self._delete_history(partition, id_, row, left)

    async def sweep(self, name: str) -> None:
        """Delete the histories whose deletion broke off."""
        partition = self._partition(name)
        async for item in self._store.scan(partition, DELETED, prefix_end(DELETED)):
            try:
                row = decode(MachineRow.FromString, item.value, f"deleted machine {item.key!r}")
            except InvalidDataError as error:
                _logger.error("%s", error)  # noqa: TRY400  no defect of ours
                continue
            await self._delete_history(partition, deleted_machine(item.key), row, item.key)

    async def _delete_history(self, partition: str, id_: str, row: MachineRow, left: str) -> None:
        """Delete the history of a deleted machine, and at last the row that says how much there is.

        Nobody reads it any more: the next machine of the id numbers otherwise.
        """
        most = self._store.limits.operations - 1
        while row.history_swept < row.history_next:
            end = min(row.history_swept + most, row.history_next)
            deletes = history_deletes(partition, id_, row.history_swept, end)
            row.history_swept = end
            await self._store.multi(
                [*deletes, SetRequest(partition=partition, key=left, value=row.SerializeToString())]
            )
        await self._store.delete(DeleteRequest(partition=partition, key=left))

    async def _change(
        self, id_: str, name: str, expected: int | None, apply: Callable[[Change], Awaitable[None]]
    ) -> Held:
        partition = self._partition(name)

        async def attempt() -> Held:
            held = await self._machines.read(partition, id_)
            _check_revision(f"{name}#{id_}", held, expected)
            change = Change(partition, id_, held, first_number=self._options.clock.time_ns())
            await apply(change)
            change.row.revision += 1
            changed = Held(change.row, await self._store.multi(change.operations()))
            self._machines.remember((partition, id_), changed)
            return changed

        return await self._in_turn(id_, name, attempt)

    async def _in_turn(self, id_: str, name: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """What an attempt answers, as soon as nobody was faster."""
        partition = self._partition(name)
        for number in range(1, self._options.max_attempts + 1):
            try:
                async with self._turns.turn(partition, id_):
                    return await attempt()
            except ETagMismatchError:
                self._machines.forget((partition, id_))
                await pause_after(number)
        raise TooManyAttemptsError(
            f"machine {id_!r} of {name!r}: retries exceeded ({self._options.max_attempts} attempts)"
        )

    async def ids(self, name: str, state: str | None, after: str, limit: int | None) -> list[str]:
        """Ids of machines, all or those in a state."""
        if limit is not None and limit <= 0:
            return []
        prefix = machine_key("") if state is None else state_prefix(state)
        # The machine `after` itself comes first, if it is still there.
        more = None if limit is None else limit + 1
        rows = self._store.scan(self._partition(name), prefix + after, prefix_end(prefix), limit=more)
        found = [item.key.removeprefix(prefix) async for item in rows]
        return [id_ for id_ in found if not after or id_ != after][:limit]

    async def update_state(self, name: str, id_: str, old_state: str, new_state: str) -> None:
        """Bring the index of a machine into line with the machine."""
        partition = self._partition(name)

        async def attempt() -> None:
            held = await self._machines.read(partition, id_)
            _check_states(f"{name}#{id_}", held, old_state, new_state)
            operations: list[Operation] = [Change(partition, id_, held, first_number=0).condition]
            if old_state and old_state != new_state:
                operations.append(DeleteRequest(partition=partition, key=state_key(old_state, id_)))
            if new_state:
                operations.append(SetRequest(partition=partition, key=state_key(new_state, id_), value=MARK))
            await self._store.multi(operations)

        await self._in_turn(id_, name, attempt)

    def _partition(self, name: str) -> str:
        return machine_partition(self._namespace, name)


def _check_revision(key: str, held: Held | None, expected: int | None) -> None:
    actual = 0 if held is None else held.row.revision
    if expected is not None and expected != actual:
        raise RevisionMismatchError(key, expected=expected, actual=actual)


def _check_states(key: str, held: Held | None, old_state: str, new_state: str) -> None:
    if held is None:
        if new_state:
            raise NotFoundError(key)
        return
    state = held.row.state
    if new_state and new_state != state:
        raise InvalidDataError(f"machine {key} is in {state!r}, not in {new_state!r}")
    if old_state == state and not new_state:
        raise InvalidDataError(f"machine {key} is in {state!r}, and stays in the set of that state")
