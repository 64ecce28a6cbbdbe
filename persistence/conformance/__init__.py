"""Does a store keep the contract? The suite that every backend, also a third party's, runs against itself.

With pytest and any plugin for coroutines::

    from persistence import conformance

    @pytest.mark.parametrize("case", conformance.CASES, ids=str)
    async def test_my_store(case: conformance.Case, tmp_path: Path) -> None:
        await case.check(lambda: MyStore(tmp_path / "state"))

Without pytest, all at once: `asyncio.run(conformance.check_store(lambda: MyStore(url)))`.

The function makes a store that is not open yet; stores made by one function share one database. It may hold
other data: each case works in a partition with a random name. What a store does not declare in `features`
is skipped, and nothing else is; what its `limits` have no room for is not asked of it, as long as they have
some for keys of 200 bytes, values of 4 KiB and ten operations. A store whose clock can be set passes its own
`wait`, so that the cases about expiry take no time.
"""

from persistence.conformance.case import Case, ConformanceError, OpenStore, Wait, World
from persistence.conformance.suite import CASES, Report, check_store

__all__ = [
    "CASES",
    "Case",
    "ConformanceError",
    "OpenStore",
    "Report",
    "Wait",
    "World",
    "check_store",
]
