"""How a store uses its server."""

from __future__ import annotations

from datetime import timedelta

import attrs

from hsm.engine.clock import Clock, SystemClock
from hsm.fsm.keys import NEVER_EXPIRE

__all__ = ["RedisStoreOptions"]


@attrs.frozen(kw_only=True)
class RedisStoreOptions:
    """What a store on Redis can be told besides its address.

    Attributes:
        event_ttl: how long an event is kept after it has its outcome; no longer than the outcome.
        outcome_ttl: how long an outcome is kept, and an event that comes again is answered with it.
        history_cap: events that the history of a machine keeps; None keeps all.
        notify: whether outcomes of refused events are kept until somebody was told of them.
        notify_all: whether those of events that succeeded are kept so, too.
        batch: events to one machine in one transaction.
        cached_configurations: configurations remembered; they never change.
        clock: where time comes from, for events that have none. Redis lets keys expire by its own.
        username: to log in with.
        password: to log in with.
        tls: talk TLS (1.2 or newer).
        tls_ca: a file with the certificates to trust; else the system's.
        tls_cert: a file with a certificate of our own, which the server may ask for.
        tls_key: a file with its key.
        tls_check_hostname: whether the server's certificate has to name the host.
    """

    event_ttl: timedelta = NEVER_EXPIRE
    outcome_ttl: timedelta = NEVER_EXPIRE
    history_cap: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(attrs.validators.ge(0))
    )
    notify: bool = False
    notify_all: bool = False
    batch: int = attrs.field(default=64, validator=attrs.validators.ge(1))
    cached_configurations: int = attrs.field(default=1000, validator=attrs.validators.ge(1))
    clock: Clock = attrs.field(factory=SystemClock)
    username: str | None = None
    password: str | None = attrs.field(default=None, repr=False)
    tls: bool = False
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_check_hostname: bool = True
