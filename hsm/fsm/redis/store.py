"""The store of configured machines on Redis or Valkey, one server or a cluster."""

from __future__ import annotations

from datetime import timedelta
from types import TracebackType
from typing import Self

from hsm.fsm.keys import DEFAULT_MAX_RETRIES, DEFAULT_NAMESPACE, DEFAULT_TIMEOUT, NEVER_EXPIRE
from hsm.fsm.redis._base import Settings
from hsm.fsm.redis._events import Events
from hsm.fsm.redis.options import RedisStoreOptions

__all__ = ["RedisStore"]


class RedisStore(Events):
    """Configurations, machines and events in the key layout that programs in other languages use, too.

    What they have written is read, and what is written here is read by them: see `hsm.fsm.keys` for the
    keys; fields that they do not know they skip. What the layout has no place for, such as the order of
    accepted events, stands in keys that begin with `hsm:`.

    On one server a machine, its place in the state sets, its events and their outcomes change in one call
    of a script: together or not at all. On a cluster the layout spreads them over slots, which no
    transaction spans. There the machine's own key decides: what follows from a decision is noted beside it
    in the same transaction, and whoever writes to the machine next writes that, too, if a crash has kept it
    from being written. A machine is never missing from the set of its state; it may for a moment, or after a
    crash, be in another one as well, which `get_all_in_state` leaves out.

    What fails, or takes longer than the time-out, is tried again, `max_retries` attempts in all, with random
    pauses between; the error of the last one is the cause of what is raised. Nothing is done twice by that.

    Semantics: go-statemachine (v0.14.0) `RedisStore`, with what `hsm.fsm.StoreManager` promises.
    """

    def __init__(
        self,
        address: str,
        is_cluster: bool = False,
        db: int = 0,
        timeout: timedelta = DEFAULT_TIMEOUT,
        max_retries: int = DEFAULT_MAX_RETRIES,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        options: RedisStoreOptions | None = None,
    ) -> None:
        """Make a store; it connects when it is first used.

        Args:
            address: `host:port`; of a cluster one of its nodes, or several with commas between.
            is_cluster: whether it is a cluster.
            db: the number of the database.
            timeout: for one attempt at one exchange with the server; zero for no limit.
            max_retries: attempts in all, at least one.
            namespace: the tenant. The default one uses the keys that other programs use; any other puts
                `ns#<namespace>#` before each of them.
            options: everything else.

        Raises:
            GenericStoreError: the client library is not installed; the error names the extra that brings it.
            InvalidDataError: one of the arguments cannot be used.
        """
        super().__init__(
            Settings(
                address=address,
                is_cluster=is_cluster,
                db=db,
                timeout=timeout,
                max_retries=max_retries,
                namespace=namespace,
                options=options or RedisStoreOptions(),
            )
        )

    @classmethod
    def with_defaults(cls, address: str, db: int = 0) -> Self:
        """A store on one server, with the default time-out and number of attempts."""
        return cls(address, False, db)

    def __repr__(self) -> str:
        return f"<RedisStore of namespace {self._namespace!r} at {self._address}>"

    def get_timeout(self) -> timedelta:
        """How long one attempt at one exchange with the server may take."""
        return self._timeout

    async def health(self) -> None:
        """Return if the server answers within the time-out; of a cluster, all that have slots.

        Raises:
            FSMStoreError: it does not.
        """

        async def work(_: int) -> None:
            await self._opened.connections.ask_all((b"PING",))

        await self._attempt("health", work)

    async def sweep(self) -> None:
        """See `StoreManager`: nothing is to be done, for a machine is one key."""

    async def aclose(self) -> None:
        """Finish what was begun, and close all connections; a second call does nothing."""
        # Each exchange has its time-out, and attempts come to an end.
        await self._lanes.aclose(NEVER_EXPIRE)
        await self._opened.connections.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
