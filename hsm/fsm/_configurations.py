"""Configurations in the storage contract: immutable, so that what was read once need not be read again."""

from __future__ import annotations

from typing import Final

from hsm.fsm._machines import IF_ABSENT, MARK
from hsm.fsm._moves import Moves
from hsm.fsm._rows import NAMES, config_key, config_partition, config_prefix, decode, name_key
from hsm.fsm.configuration import check_name, identity_of
from hsm.fsm.errors import AlreadyExistsError, ConfigurationNotFoundError
from hsm.fsm.keys import CONFIG_ID_SEPARATOR, config_id_of
from persistence.errors import ETagMismatchError
from persistence.options import prefix_end
from persistence.proto.statemachine_pb2 import Configuration
from persistence.store import EngineStore, GetRequest, SetRequest

__all__ = ["Configurations"]

_MOST_REMEMBERED: Final = 10_000


class Configurations:
    """The configurations of a namespace."""

    def __init__(self, store: EngineStore, namespace: str) -> None:
        self._store = store
        self._partition = config_partition(namespace)
        self._moves: dict[str, Moves] = {}
        self._known_names: set[str] = set()

    def remembered(self, config_id: str) -> Moves | None:
        """The moves of `name:version`, if they were asked for before."""
        return self._moves.get(config_id)

    async def moves(self, config_id: str) -> Moves:
        """The moves of `name:version`.

        Raises:
            ConfigurationNotFoundError: there is no such configuration.
        """
        found = self._moves.get(config_id)
        if found is None:
            name, _, version = config_id.partition(CONFIG_ID_SEPARATOR)
            if not name or not version:
                raise ConfigurationNotFoundError(config_id)
            request = GetRequest(partition=self._partition, key=config_key(name, version))
            response = await self._store.get(request)
            if response.data is None:
                raise ConfigurationNotFoundError(config_id)
            what = f"configuration {config_id!r}"
            found = Moves.of(decode(Configuration.FromString, response.data, what))
            if len(self._moves) >= _MOST_REMEMBERED:
                self._moves.clear()
            self._moves[config_id] = found
        return found

    async def put(self, configuration: Configuration) -> None:
        """Store a configuration, and its name, in one transaction.

        Raises:
            AlreadyExistsError: there is one of this name and version.
            MalformedConfigurationError: it has no name or no version, or they are no identifiers.
        """
        config_id = identity_of(configuration)
        check_name(configuration.name, "name")
        check_name(configuration.version, "version")
        key = config_key(configuration.name, configuration.version)
        value = configuration.SerializeToString(deterministic=True)
        operations = (
            SetRequest(partition=self._partition, key=key, value=value, options=IF_ABSENT),
            SetRequest(partition=self._partition, key=name_key(configuration.name), value=MARK),
        )
        try:
            await self._store.multi(operations)
        except ETagMismatchError as error:
            raise AlreadyExistsError(config_id) from error

    async def knows(self, name: str) -> bool:
        """Whether there is a version of a name."""
        if name not in self._known_names:
            if not name:
                return False
            response = await self._store.get(GetRequest(partition=self._partition, key=name_key(name)))
            if response.data is None:
                return False
            self._known_names.add(name)
        return True

    async def names(self) -> list[str]:
        """All names, sorted."""
        rows = self._store.scan(self._partition, NAMES, prefix_end(NAMES))
        return [item.key.removeprefix(NAMES) async for item in rows]

    async def versions(self, name: str) -> list[str]:
        """`name:version` of all versions of a name, sorted."""
        prefix = config_prefix(name)
        rows = self._store.scan(self._partition, prefix, prefix_end(prefix))
        return [config_id_of(name, item.key.removeprefix(prefix)) async for item in rows]
