"""Configurations on Redis: immutable, and therefore kept in memory once they were read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress

from hsm.fsm._moves import Moves
from hsm.fsm.configuration import check_name, identity_of
from hsm.fsm.errors import AlreadyExistsError, ConfigurationNotFoundError
from hsm.fsm.keys import CONFIG_ID_SEPARATOR
from hsm.fsm.redis._base import Base, Settings, parsed
from persistence.proto.statemachine_pb2 import Configuration

__all__ = ["Configurations"]


class Configurations(Base):
    """The operations of `ConfigStore`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._known_names: set[str] = set()
        self._known: OrderedDict[str, Moves] = OrderedDict()

    async def get_config(self, config_id: str) -> Configuration:
        """The configuration `name:version`.

        Raises:
            ConfigurationNotFoundError: there is none.
        """
        copy = Configuration()
        copy.CopyFrom((await self._moves(config_id)).configuration)
        return copy

    async def _moves(self, config_id: str) -> Moves:
        """The same, prepared for events."""
        known = self._known.get(config_id)
        if known is not None:
            self._known.move_to_end(config_id)
            return known
        key = self._layout.config(config_id)
        # Without a separator it would be the key of a set of versions.
        value = (await self._ask(key, (b"GET", key)))[0] if CONFIG_ID_SEPARATOR in config_id else None
        if value is None:
            raise ConfigurationNotFoundError(config_id)
        known = self._known[config_id] = Moves.of(parsed(Configuration, value, key))
        while len(self._known) > self._options.cached_configurations:
            self._known.popitem(last=False)
        return known

    async def put_config(self, configuration: Configuration) -> None:
        """Store a configuration for ever. The same content again is refused, too.

        Raises:
            AlreadyExistsError: there is one of this name and version; of several writers, one succeeds.
            MalformedConfigurationError: it has no name or no version, or they are no identifiers.
        """
        config_id = identity_of(configuration)
        check_name(configuration.name, "name")
        check_name(configuration.version, "version")
        value = configuration.SerializeToString()

        async def work(number: int) -> None:
            found = await self._writer.configure(config_id, configuration.name, value)
            # Of a second attempt it may be what the first has written.
            if found is not None and not (number and found == value):
                raise AlreadyExistsError(config_id)

        await self._attempt(config_id, work)

    async def get_all_configs(self) -> Sequence[str]:
        """The names of all configurations, sorted."""
        return sorted({name async for page in self._members(self._layout.configs) for name in page})

    async def get_all_versions(self, name: str) -> Sequence[str]:
        """The identities `name:version` of all versions of a name, sorted as text; none if it is unknown."""
        return sorted({each async for page in self._members(self._layout.versions(name)) for each in page})

    async def _knows(self, name: str) -> bool:
        """Whether there is a configuration of a name; there always is once there was one."""
        if name not in self._known_names:
            key = self._layout.configs
            (found,) = await self._ask(key, (b"SISMEMBER", key, self._layout.text(name)))
            if not found:
                return False
            if len(self._known_names) >= self._options.cached_configurations:
                self._known_names.pop()
            self._known_names.add(name)
        return True

    async def _states_of(self, name: str) -> set[str]:
        """All states in which a machine of a name may be."""
        states = {state async for page in self._members(self._layout.states(name)) for state in page}
        for config_id in await self.get_all_versions(name):
            with suppress(ConfigurationNotFoundError):
                states.update((await self._moves(config_id)).configuration.states)
        return states
