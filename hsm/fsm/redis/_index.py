"""The sets of machines by state: listed, and brought into line with the machines."""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Sequence

from hsm.fsm.errors import InvalidDataError, NotFoundError
from hsm.fsm.redis._configurations import Configurations
from hsm.fsm.redis._deciding import machine_of

__all__ = ["Index"]


class Index(Configurations):
    """The operations of `FSMStore` on the sets of machines."""

    async def get_all_machines(
        self, name: str, *, after: str = "", limit: int | None = None
    ) -> Sequence[str]:
        """Ids of all machines of a configuration name, sorted: at most `limit`, those that follow `after`."""
        found: set[str] = set()
        for state in sorted(await self._states_of(name)):
            found |= await self._some_in_state(name, state, after, limit)
            if limit is not None:
                found = set(heapq.nsmallest(limit, found))
        return sorted(found)

    async def get_all_in_state(
        self, name: str, state: str, *, after: str = "", limit: int | None = None
    ) -> Sequence[str]:
        """Ids of the machines in a state, sorted: at most `limit`, those that follow `after`.

        The set is read by pages, from its beginning for each call, for Redis keeps it in no order.
        """
        return sorted(await self._some_in_state(name, state, after, limit))

    async def _some_in_state(self, name: str, state: str, after: str, limit: int | None) -> set[str]:
        found: set[str] = set()
        key = self._layout.state(name, state)
        async for page in self._members(key):
            ids = [each for each in page if each > after and each not in found]

            async def work(_: int, ids: Sequence[str] = ids) -> Sequence[str]:
                return await self._writer.in_state(name, state, ids)

            found.update(await self._attempt(key.decode(), work))
            if limit is not None and len(found) > limit:
                found = set(heapq.nsmallest(limit, found))
        return found

    async def update_state(self, name: str, id: str, old_state: str, new_state: str) -> None:  # noqa: A002
        """Bring the index of one machine into line with the machine itself; see `FSMStore.update_state`.

        Raises:
            NotFoundError: `new_state` is given, and there is no such machine.
            InvalidDataError: the index would be wrong; nothing was written.
        """
        machine = self._layout.machine(id, name).decode()

        async def work(_: int) -> None:
            found = machine_of(await self._writer.look(id, name, ()), machine)
            state = found.state if found is not None else ""
            if new_state and found is None:
                raise NotFoundError(machine)
            if state and ((new_state and state != new_state) or (old_state == state and not new_state)):
                raise InvalidDataError(f"machine {machine} is in {state!r}: the index would be wrong")
            await self._writer.align(id, name, [each for each in (old_state, new_state) if each])

        async with self._turns.turn(name, id):
            await self._attempt(machine, work)

    async def repair(self, name: str) -> int:
        """Bring the state sets of a configuration name into line with its machines; how much was wrong.

        For data of programs that change the sets and the machines one after the other, and for a cluster
        after a crash. It goes through all keys of the database.
        """
        states = sorted(await self._states_of(name))
        ids = {each async for each in self._all_machines(name)}
        for state in states:
            async for page in self._members(self._layout.state(name, state)):
                ids.update(page)
        wrong = 0
        for id_ in sorted(ids):

            async def work(_: int, id_: str = id_) -> int:
                found = machine_of(
                    await self._writer.look(id_, name, ()), self._layout.machine(id_, name).decode()
                )
                own = [found.state] if found is not None and found.state not in states else []
                return await self._writer.align(id_, name, [*states, *own])

            async with self._turns.turn(name, id_):
                wrong += await self._attempt(id_, work)
        return wrong

    async def _all_machines(self, name: str) -> AsyncIterator[str]:
        pattern = self._layout.machine_pattern(name)
        async for key in self._keys(pattern):
            id_ = self._layout.machine_of(key, name)
            if id_ is None:
                continue
            try:
                yield id_.decode()
            except UnicodeDecodeError:
                self._logger.warning("key %r is left alone: the id in it is no text", key)
