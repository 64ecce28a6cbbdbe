from __future__ import annotations

import pytest

from persistence import (
    ABSENT,
    Absent,
    CheckRequest,
    Concurrency,
    DeleteOptions,
    DeleteRequest,
    ETagInvalidError,
    ETagMismatchError,
    InvalidRequestError,
    Limits,
    SetOptions,
    SetRequest,
    TransactionTooLargeError,
)
from persistence.decision import Transaction, decide, new_etags, prepare

LIMITS = Limits(operations=4, transaction_bytes=100, key_bytes=20, value_bytes=50)
ROOMY = Limits(operations=100, transaction_bytes=1000, key_bytes=100, value_bytes=100)
OLD, OTHER = "0" * 16, "f" * 16
NEW = [f"{number:016x}" for number in range(1, 10)]


def put(key: str, value: bytes = b"v", etag: str | None = None, *, first: bool = False) -> SetRequest:
    concurrency = Concurrency.FIRST_WRITE if first else Concurrency.DEFAULT
    return SetRequest(key=key, value=value, etag=etag, options=SetOptions(concurrency=concurrency))


def remove(key: str, etag: str | None = None, *, first: bool = False) -> DeleteRequest:
    concurrency = Concurrency.FIRST_WRITE if first else Concurrency.DEFAULT
    return DeleteRequest(key=key, etag=etag, options=DeleteOptions(concurrency=concurrency))


def check(key: str, etag: str | Absent) -> CheckRequest:
    return CheckRequest("", key, etag)


def transaction(*operations: SetRequest | DeleteRequest | CheckRequest) -> Transaction:
    return prepare(operations, ROOMY)


def outcomes(batch: list[Transaction], stored: dict[str, str]) -> tuple[list[bool], dict[str, bytes | None]]:
    slots = {("", key): etag for key, etag in stored.items()}
    decision = decide(batch, slots, NEW[: len(batch)])
    written = {slot[1]: write[1] for slot, (write, _) in decision.writes.items()}
    return [isinstance(result, str) for result in decision.results], written


# Rows: operation, then whether it succeeds on an absent key, with the etag given, with another etag.
TABLE = [
    (put("k"), True, True, True),
    (put("k", first=True), True, False, False),
    (put("k", etag=OLD), False, True, False),
    (put("k", etag=OLD, first=True), False, True, False),
    (remove("k"), True, True, True),
    (remove("k", first=True), True, False, False),
    (remove("k", etag=OLD), False, True, False),
    (remove("k", etag=OLD, first=True), False, True, False),
    (check("k", OLD), False, True, False),
    (check("k", ABSENT), True, False, False),
]


@pytest.mark.parametrize(("operation", "absent", "equal", "different"), TABLE)
def test_decision_table(
    operation: SetRequest | DeleteRequest | CheckRequest, *, absent: bool, equal: bool, different: bool
) -> None:
    batch = [transaction(operation)]
    assert outcomes(batch, {})[0] == [absent]
    assert outcomes(batch, {"k": OLD})[0] == [equal]
    assert outcomes(batch, {"k": OTHER})[0] == [different]


def test_a_winner_is_seen_by_those_after_it() -> None:
    batch = [
        transaction(put("k", b"1", OLD)),
        transaction(put("k", b"2", OLD)),
        transaction(put("k", b"3", NEW[0])),
    ]
    assert outcomes(batch, {"k": OLD}) == ([True, False, True], {"k": b"3"})


def test_a_loser_leaves_nothing() -> None:
    batch = [transaction(put("a"), check("k", OTHER)), transaction(put("b"), check("a", ABSENT))]
    assert outcomes(batch, {"k": OLD}) == ([False, True], {"b": b"v"})


def test_only_the_last_state_of_a_key_is_written() -> None:
    batch = [transaction(put("k", b"1")), transaction(remove("k")), transaction(put("k", b"2"), remove("j"))]
    assert outcomes(batch, {}) == ([True, True, True], {"k": b"2", "j": None})


def test_conditions_see_the_state_before_their_own_writes() -> None:
    batch = [transaction(put("k"), check("k", ABSENT)), transaction(remove("k"), check("k", NEW[0]))]
    assert outcomes(batch, {})[0] == [True, True]


def test_a_deleted_key_is_absent_for_those_after() -> None:
    batch = [transaction(remove("k")), transaction(put("k", first=True)), transaction(put("k", first=True))]
    assert outcomes(batch, {"k": OLD})[0] == [True, True, False]


def test_refusal_names_key_and_partition_and_both_etags() -> None:
    batch = [prepare([CheckRequest("p", "k", OTHER)], ROOMY)]
    (refusal,) = decide(batch, {("p", "k"): OLD}, NEW[:1]).results
    assert isinstance(refusal, ETagMismatchError)
    assert (refusal.partition, refusal.key) == ("p", "k")
    assert OLD in str(refusal)
    assert OTHER in str(refusal)


def test_result_is_the_etag_of_what_was_written() -> None:
    batch = [transaction(put("a")), transaction(remove("a")), transaction(check("a", ABSENT))]
    assert decide(batch, {}, NEW[:3]).results == [NEW[0], "", ""]


def test_etags_are_sixteen_digits_and_all_different() -> None:
    etags = new_etags(1000)
    assert len(set(etags)) == 1000
    for etag in etags:
        transaction(put("k", etag=etag))


@pytest.mark.parametrize(
    "operations",
    [
        [put(f"k{number}") for number in range(5)],
        [put("k", b"x" * 51)],
        [put("k" * 21)],
        [put("a", b"x" * 50), put("b", b"x" * 49)],
        [check("k" * 21, ABSENT)],
    ],
)
def test_what_is_over_the_limits_is_refused(operations: list[SetRequest]) -> None:
    with pytest.raises(TransactionTooLargeError):
        prepare(operations, LIMITS)


def test_what_fills_the_limits_is_accepted() -> None:
    assert prepare([put("a", b"x" * 49), put("b", b"x" * 49)], LIMITS).size == 100
    prepare([put("k" * 20)], LIMITS)


def test_partition_counts_with_every_key() -> None:
    requests = [SetRequest(partition="p" * 10, key="k" * 10, value=b"") for _ in range(2)]
    assert prepare(requests, LIMITS).size == 40
    with pytest.raises(TransactionTooLargeError):
        prepare([SetRequest(partition="p" * 11, key="k" * 10, value=b"")], LIMITS)


def test_values_are_bytes() -> None:
    for value in ("text", bytearray(b"can change"), None):
        with pytest.raises(InvalidRequestError, match="not bytes"):
            prepare([put("k", value)], ROOMY)  # type: ignore[arg-type]  # what an untyped caller may do


def test_operations_are_of_one_partition() -> None:
    with pytest.raises(InvalidRequestError, match="partitions 'a' and 'b'"):
        prepare([CheckRequest("a", "k", ABSENT), CheckRequest("b", "k", ABSENT)], ROOMY)


def test_impossible_etag_is_invalid() -> None:
    for operation in (put("k", etag="x"), remove("k", etag="x"), check("k", "x"), check("k", "")):
        with pytest.raises(ETagInvalidError):
            prepare([operation], ROOMY)
