"""Rate limits: how often tasks of a queue are started."""

from __future__ import annotations

import attrs

__all__ = ["Rate"]


@attrs.frozen
class Rate:
    """At most so many starts a second on the long run, and `burst` of them at once after a pause.

    A token bucket by the engine's clock, each process with a bucket of its own. Tasks over the limit wait in
    their queue; no attempt is counted.

    Attributes:
        per_second: starts a second, may be below 1; `math.inf` is no limit.
        burst: starts that may have been saved up, at least 1.
    """

    per_second: float = attrs.field(validator=attrs.validators.gt(0))
    burst: int = attrs.field(default=1, validator=attrs.validators.ge(1))
