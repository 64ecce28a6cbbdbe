"""The deadline queue against a model: whatever is put, moved and removed, the earliest comes out first."""

from __future__ import annotations

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hsm.goalstate import DeadlineQueue

ITEMS = st.sampled_from([f"item {number}" for number in range(8)])
# Far apart, within a few seconds of each other, and equal.
DEADLINES = st.integers(-(10**12), 2 * 10**18) | st.integers(-(10**11), 10**11) | st.integers(-2, 5)


class QueueModel(RuleBasedStateMachine):
    """Deadlines and the order of arrival, by item."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: DeadlineQueue[str] = DeadlineQueue()
        self.model: dict[str, tuple[int, int]] = {}
        self.count = 0

    @rule(item=ITEMS, deadline=DEADLINES)
    def put(self, item: str, deadline: int) -> None:
        self.count += 1
        self.queue.put(item, deadline)
        self.model[item] = (deadline, self.count)

    @rule(item=ITEMS, deadline=DEADLINES)
    def put_earlier(self, item: str, deadline: int) -> None:
        self.count += 1
        earlier = item not in self.model or deadline < self.model[item][0]
        assert self.queue.put_earlier(item, deadline) == earlier
        if earlier:
            self.model[item] = (deadline, self.count)

    @rule(item=ITEMS)
    def discard(self, item: str) -> None:
        assert self.queue.discard(item) == (self.model.pop(item, None) is not None)

    @rule(now=DEADLINES)
    def pop(self, now: int) -> None:
        due = [(entry, item) for item, entry in self.model.items() if entry[0] <= now]
        expected = min(due)[1] if due else None
        assert self.queue.pop_due(now) == expected
        self.model.pop(expected or "", None)

    @rule()
    def pop_everything(self) -> None:
        popped = [self.queue.pop_due(2 * 10**18) for _ in range(len(self.model))]
        assert popped == sorted(self.model, key=lambda item: self.model[item])
        self.model.clear()

    @invariant()
    def agrees(self) -> None:
        assert len(self.queue) == len(self.model)
        assert self.queue.next_deadline() == min((entry[0] for entry in self.model.values()), default=None)
        for item in [f"item {number}" for number in range(8)]:
            assert (item in self.queue) == (item in self.model)
            assert self.queue.deadline(item) == (self.model[item][0] if item in self.model else None)


TestQueueModel = QueueModel.TestCase
TestQueueModel.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
