"""Tree nodes as entities: a machine in a tree is brought to its goal, transition by transition."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from datetime import timedelta
from typing import Any, Final, Generic, TypeVar

from hsm.errors import ExecutionNotFoundError, StateMachineDeletedError, StateMachineNotFoundError
from hsm.executor import Environment
from hsm.goalstate.entity import Action, ActionList, Run, Standing
from hsm.goalstate.errors import EntityNotFoundError
from hsm.goalstate.planner import Planner, Step, plan_actions
from hsm.machine import HasState, Key
from hsm.ref import ExecutionKey, Ref
from hsm.transition import Transition
from hsm.tree import Node
from persistence.executions import escape, segment, unescape

__all__ = ["NodeDriver", "NodeEntity", "node_id", "node_ref"]

StateT = TypeVar("StateT", bound=Hashable)
MachineT = TypeVar("MachineT", bound=HasState[Any])

_A_WHILE: Final = timedelta(seconds=1)


def node_id(ref: Ref) -> str:
    """The id of the entity of a node, whatever state the node is in: `node_ref` finds the node again."""
    parts = [escape(part) for part in ref.execution]
    return "/".join([*parts, *(segment(key.type, key.id) for key in ref.path)])


def node_ref(id_: str) -> Ref:
    """A reference to the node that `node_id` was given.

    Raises:
        ValueError: the id is none of `node_id`.
    """
    namespace, execution, run, *path = id_.split("/")
    keys = (part.partition(":") for part in path)
    return Ref(
        ExecutionKey(unescape(namespace), unescape(execution), unescape(run)),
        tuple(Key(int(type_id), unescape(name)) for type_id, _, name in keys),
    )


class NodeDriver(Generic[StateT, MachineT]):
    """Knows how machines of one type get to their goals.

    The goal is part of the machine's data, so that it is written with a transition like everything else:

    ```
    driver = NodeDriver(Lamp, [switch_on, switch_off], goal=lambda lamp: lamp.goal)
    engine.enqueue(driver.entity(environment, ref))
    ```
    """

    def __init__(
        self,
        machine: type[MachineT],
        transitions: Sequence[Transition[StateT, MachineT, Any]],
        *,
        goal: Callable[[MachineT], StateT],
        event: Callable[[Transition[StateT, MachineT, Any], MachineT], object] = lambda _step, _machine: None,
        awaited: Sequence[Transition[StateT, MachineT, Any]] = (),
        poll: timedelta = _A_WHILE,
        timeout: timedelta | None = None,
    ) -> None:
        """Make a driver.

        Args:
            machine: the class of the machine's data.
            transitions: those that the driver may apply.
            goal: where a machine should be.
            event: what a transition is applied with; it has to be what its function takes.
            awaited: transitions that others apply, such as executors of tasks: a way may lead over them, and
                the driver waits there.
            poll: how long it waits before it looks again, unless the entity is enqueued earlier.
            timeout: of the whole way, as far as it is gone at once.
        """
        self._machine = machine
        self._own = {id(transition): transition for transition in transitions}
        self._goal = goal
        self._event = event
        self._poll = poll
        self._timeout = timeout
        self.planner: Planner[StateT] = Planner([*transitions, *awaited])

    def entity(self, environment: Environment, ref: Ref) -> NodeEntity[StateT, MachineT]:
        """The entity of a node: of an engine, or whatever gives access to trees."""
        return NodeEntity(self, environment, ref)

    def standing(self, node: Node) -> Standing[StateT, StateT]:
        """State and goal of a node."""
        data = node.data(self._machine)
        return Standing(data.state, self._goal(data))

    def action_list(self, state: StateT, goal: StateT) -> ActionList[NodeEntity[StateT, MachineT]]:
        """The way from a state to a goal, up to the first step that others take.

        Raises:
            UnreachableGoalError: there is no way.
        """
        plan = self.planner.plan(state, goal)
        first = next((place for place, step in enumerate(plan) if id(step) not in self._own), len(plan))
        actions = plan_actions(plan[:first], self._take)
        if first < len(plan):
            actions.append(Action(f"wait for {plan[first].name}", self._wait))
        return ActionList(actions, self._timeout)

    async def _take(self, entity: NodeEntity[StateT, MachineT], step: Step[StateT]) -> StateT:
        transition = self._own[id(step)]

        def change(node: Node) -> StateT:
            data = node.data(self._machine)
            if transition.possible(data):
                node.apply(transition, self._event(transition, data))
            # Else somebody else has moved it, and the answer says where to.
            state: StateT = node.data(self._machine).state
            return state

        return await entity.environment.update(entity.ref, change)

    async def _wait(self, _entity: NodeEntity[StateT, MachineT], run: Run) -> None:
        run.again(self._poll)


class NodeEntity(Generic[StateT, MachineT]):
    """A node on its way. Holds no state: that is in the tree.

    Attributes:
        id: of the entity, which `node_ref` understands.
        environment: gives access to the tree.
        ref: to the node.
    """

    def __init__(self, driver: NodeDriver[StateT, MachineT], environment: Environment, ref: Ref) -> None:
        # Without counts and versions: the node will have moved on when the entity is evaluated.
        self.ref: Ref = Ref(ref.execution, ref.path)
        self.id: str = node_id(self.ref)
        self.environment: Environment = environment
        self._driver = driver

    async def read(self) -> Standing[StateT, StateT]:
        """State and goal, of one moment.

        Raises:
            EntityNotFoundError: there is no such node any more.
        """
        try:
            return await self.environment.read(self.ref, self._driver.standing)
        except (ExecutionNotFoundError, StateMachineNotFoundError, StateMachineDeletedError) as error:
            raise EntityNotFoundError(f"there is no node {self.id!r} any more") from error

    def action_list(self, state: StateT, goal: StateT, /) -> ActionList[NodeEntity[StateT, MachineT]]:
        """The transitions on the way to the goal.

        Raises:
            UnreachableGoalError: there is no way.
        """
        return self._driver.action_list(state, goal)
