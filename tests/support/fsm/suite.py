"""What every store of configurations, machines and events does: mix the classes into test classes.

A module that has a fixture `world` (see `tests.support.fsm.world`) runs them by subclassing.
"""

from __future__ import annotations

from tests.support.fsm.asking import event, gone, pending_of, request, states_of, with_order
from tests.support.fsm.suite_events import EventsSuite
from tests.support.fsm.suite_machines import MachinesSuite
from tests.support.fsm.suite_pending import PendingSuite
from tests.support.fsm.suite_store import ConfigurationsSuite, ManagerSuite

__all__ = [
    "ConfigurationsSuite",
    "EventsSuite",
    "MachinesSuite",
    "ManagerSuite",
    "PendingSuite",
    "event",
    "gone",
    "pending_of",
    "request",
    "states_of",
    "with_order",
]
