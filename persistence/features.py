"""From a store to what a caller needs of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, cast

from persistence.errors import FeatureMissingError
from persistence.store import (
    EngineStore,
    Feature,
    KeysLikeStore,
    OrderedStore,
    PrefixDeleteStore,
    Store,
    StoreT,
    TransactionalStore,
    WatchableStore,
)

__all__ = ["require"]

_NEEDS: Final[Mapping[object, frozenset[Feature]]] = {
    TransactionalStore: frozenset({Feature.TRANSACTIONAL}),
    OrderedStore: frozenset({Feature.SCAN}),
    EngineStore: frozenset({Feature.ETAG}),
    WatchableStore: frozenset({Feature.WATCH}),
    KeysLikeStore: frozenset({Feature.KEYS_LIKE}),
    PrefixDeleteStore: frozenset({Feature.DELETE_WITH_PREFIX}),
}


def require(store: Store, kind: Callable[..., StoreT]) -> StoreT:
    """The same store, typed as what the caller needs: `require(store, EngineStore)`.

    `kind` is one of the protocols of `persistence.store`, or a protocol that combines some of them. (It is
    annotated as something callable, because type checkers do not let a protocol pass as a `type`.)

    Raises:
        FeatureMissingError: names the features that the store lacks.
    """
    needed: frozenset[Feature] = frozenset()
    for base in getattr(kind, "__mro__", ()):
        needed |= _NEEDS.get(base, frozenset())
    missing = sorted(feature.value for feature in needed - store.features)
    if missing:
        name = getattr(kind, "__name__", repr(kind))
        raise FeatureMissingError(f"{store!r} cannot serve as {name}: it lacks {', '.join(missing)}")
    return cast("StoreT", store)  # its features say that it has the methods
