"""The logger of the goal-state engine."""

from __future__ import annotations

import logging
from typing import Final

__all__ = ["logger"]

logger: Final = logging.getLogger("hsm.goalstate")
