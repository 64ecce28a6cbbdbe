"""Tools for tests: a clock that stands still, an engine that runs when told to, a store that fails."""

from hsm.testing.clock import FakeClock
from hsm.testing.engine import TestEngine
from hsm.testing.faults import Call, CutOffError, FaultyStore

__all__ = ["Call", "CutOffError", "FakeClock", "FaultyStore", "TestEngine"]
