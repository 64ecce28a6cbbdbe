from __future__ import annotations

from uuid import uuid4

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from persistence import InvalidRequestError
from persistence.journal import NO_VC, Journal, JournalOptions, TranscodingError, ZlibCodec
from persistence.proto.journal_pb2 import EventRow, SnapshotRow
from persistence.store import EngineStore, SetRequest
from tests.support.histories import codes, numbered, rows

HISTORY = uuid4()


class Sealed:
    """AES-GCM; a nonce for each event, and history and event authenticated."""

    def __init__(self, name: str, key: bytes) -> None:
        self.name = name
        self._cipher = AESGCM(key)
        self._nonces = 0

    def encode(self, data: bytes, context: bytes) -> bytes:
        self._nonces += 1
        nonce = self._nonces.to_bytes(12)
        return nonce + self._cipher.encrypt(nonce, data, context)

    def decode(self, data: bytes, context: bytes) -> bytes:
        return self._cipher.decrypt(data[:12], data[12:], context)


def journal_of(store: EngineStore, *codecs: Sealed | ZlibCodec, hash_chain: bool = False) -> Journal:
    codec = codecs[0] if codecs else None
    options = JournalOptions(codec=codec, older_codecs=tuple(codecs[1:]), hash_chain=hash_chain)
    return Journal(store, "tests", options=options)


async def test_codecs_can_be_changed_while_a_history_goes_on(store: EngineStore) -> None:
    old, new = Sealed("2026", b"o" * 32), Sealed("2027", b"n" * 32)
    await journal_of(store).commit(HISTORY, numbered(1), NO_VC)
    await journal_of(store, ZlibCodec()).commit(HISTORY, numbered(2), NO_VC)
    await journal_of(store, old).commit(HISTORY, numbered(3), NO_VC)
    journal = journal_of(store, new, old, ZlibCodec())
    await journal.commit(HISTORY, numbered(4), NO_VC)

    assert await codes(journal, HISTORY) == [1, 2, 3, 4]
    assert [row.codec for row in await event_rows(store, journal)] == ["", "zlib", "2026", "2027"]
    events = [item.event for item in await journal.feed.read()]
    assert [event.message().status_code for event in events if event] == [1, 2, 3, 4]


async def event_rows(store: EngineStore, journal: Journal) -> list[EventRow]:
    return [EventRow.FromString(item.value) for item in await rows(store, journal, "e/")]


async def test_nothing_is_readable_in_the_store(store: EngineStore) -> None:
    journal = journal_of(store, Sealed("k", b"k" * 32))
    (event,) = numbered(123456)
    await journal.commit(HISTORY, [event], NO_VC)

    assert all(event.payload not in item.value for item in await rows(store, journal))


async def test_events_cannot_be_exchanged(store: EngineStore) -> None:
    journal = journal_of(store, Sealed("k", b"k" * 32))
    await journal.commit(HISTORY, numbered(1, 2), NO_VC)
    first, second = await rows(store, journal, "e/")
    row, other = EventRow.FromString(first.value), EventRow.FromString(second.value)
    row.data = other.data
    value = row.SerializeToString()
    await store.set(SetRequest(key=first.key, value=value, partition=journal.partition))

    with pytest.raises(TranscodingError, match="'k'") as caught:
        await codes(journal, HISTORY)

    assert isinstance(caught.value.__cause__, InvalidTag)


async def test_events_and_snapshots_cannot_be_moved_elsewhere(store: EngineStore) -> None:
    """Not to the same place in the namespace of somebody else who shares the key, nor into a snapshot."""
    codec = Sealed("k", b"k" * 32)
    options = JournalOptions(codec=codec)
    journal, other = journal_of(store, codec), Journal(store, "other", options=options)
    committed = await journal.commit(HISTORY, numbered(1), NO_VC)
    for item in await rows(store, journal):
        await store.set(SetRequest(key=item.key, value=item.value, partition=other.partition))
    with pytest.raises(TranscodingError):
        await codes(other, HISTORY)

    await journal.snapshots.save(HISTORY, committed.version, b"state", version=1)
    (snapshot,), (event,) = await rows(store, journal, "s/"), await event_rows(store, journal)
    row = SnapshotRow.FromString(snapshot.value)
    row.data = event.data
    value = row.SerializeToString()
    await store.set(SetRequest(key=snapshot.key, value=value, partition=journal.partition))
    assert await journal.snapshots.load(HISTORY, version=1) is None


async def test_unknown_codec_is_named(store: EngineStore) -> None:
    committed = await journal_of(store, ZlibCodec()).commit(HISTORY, numbered(1), NO_VC)

    with pytest.raises(TranscodingError, match="'zlib'") as caught:
        await codes(journal_of(store), HISTORY)

    assert (caught.value.history, caught.value.event_id, caught.value.codec) == (
        HISTORY,
        committed.version,
        "zlib",
    )


async def test_event_that_cannot_be_encoded_is_not_committed(store: EngineStore) -> None:
    class Broken(ZlibCodec):
        def encode(self, data: bytes, context: bytes) -> bytes:
            raise OverflowError(f"{len(data)} bytes of {len(context)}")

    journal = journal_of(store, Broken())

    with pytest.raises(TranscodingError, match="cannot be encoded"):
        await journal.commit(HISTORY, numbered(1), NO_VC)

    assert await rows(store, journal) == []


class Mutable(ZlibCodec):
    """Makes what looks like bytes in one direction."""

    def __init__(self, direction: str) -> None:
        super().__init__()
        self._direction = direction

    def encode(self, data: bytes, context: bytes) -> bytes:
        made = super().encode(data, context)
        return bytearray(made) if self._direction == "encode" else made  # type: ignore[return-value]  # on purpose

    def decode(self, data: bytes, context: bytes) -> bytes:
        made = super().decode(data, context)
        return bytearray(made) if self._direction == "decode" else made  # type: ignore[return-value]  # on purpose


async def test_codec_that_does_not_make_bytes_is_told(store: EngineStore) -> None:
    with pytest.raises(TranscodingError, match="bytearray") as caught:
        await journal_of(store, Mutable("encode")).commit(HISTORY, numbered(1), NO_VC)
    assert caught.value.codec == "zlib"

    journal = journal_of(store, Mutable("decode"))
    await journal.commit(HISTORY, numbered(1), NO_VC)
    with pytest.raises(TranscodingError, match="bytearray"):
        await codes(journal, HISTORY)
    with pytest.raises(TranscodingError, match="bytearray"):
        await journal.feed.read()


async def test_encoded_events_are_told_apart_by_what_they_were(store: EngineStore) -> None:
    """The stored bytes of one event differ each time, and committing it again is no mismatch."""
    journal = journal_of(store, Sealed("k", b"k" * 32), hash_chain=True)
    committed = await journal.commit(HISTORY, numbered(1, 2), NO_VC)

    again = await journal.commit(HISTORY, [event.again() for event in committed.events], NO_VC)

    assert again.events == committed.events
    assert await codes(journal, HISTORY) == [1, 2]


def test_codecs_of_one_name_are_refused(store: EngineStore) -> None:
    with pytest.raises(InvalidRequestError, match="names of their own"):
        journal_of(store, ZlibCodec(), ZlibCodec())
    with pytest.raises(InvalidRequestError, match="names of their own"):
        journal_of(store, Sealed("", b"k" * 32))
