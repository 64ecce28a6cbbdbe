"""`hsm fsm diagram`: a configuration, or a machine in it, as a picture."""

from __future__ import annotations

import click

from hsm.cli._errors import CommandError
from hsm.cli._fsm_options import TargetOptions
from hsm.cli._fsm_target import CallError, checked, open_target
from hsm.cli._running import tell
from hsm.fsm.configuration import identity_of
from hsm.fsm.diagrams import DiagramFormat, diagram
from persistence.proto.statemachine_pb2 import FiniteStateMachine, GetFsmRequest

__all__ = ["draw"]

_NOT_THERE = 1


async def draw(config_id: str, machine: str, language: str, options: TargetOptions) -> int:
    """Write a diagram to standard output."""
    found: FiniteStateMachine | None = None
    async with open_target(options) as target:
        try:
            configuration = await checked(target.get_configuration(config_id))
            if machine:
                request = GetFsmRequest(config=configuration.name, id=machine)
                found = await checked(target.get_machine(request))
        except CallError as error:
            if not error.is_refusal:
                raise
            tell(error)
            return _NOT_THERE
    if found is not None and found.config_id != identity_of(configuration):
        raise CommandError(f"machine {machine!r} follows {found.config_id}, not {config_id}")
    click.echo(diagram(configuration, DiagramFormat(language), found), nl=False)
    return 0
