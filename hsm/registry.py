"""The registry: the types of machines and tasks that a program knows."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final, TypeVar

import attrs

from hsm.codec import task_serializer
from hsm.errors import DuplicateRegistrationError, NotRegisteredError
from hsm.executor import Executor, TimerExecutor
from hsm.machine import MachineDefinition, MachineType
from hsm.task import Singleton, Task, TaskSerializer, TaskType

__all__ = ["Registry", "TaskRegistration"]

TaskT = TypeVar("TaskT", bound=Task)

_INT32: Final = range(-(2**31), 2**31)
_TASK_PROTOCOL: Final = ("type", "kind", "validate")


@attrs.frozen
class TaskRegistration:
    """What is registered of a task class.

    Attributes:
        task: the class.
        group: queues tasks of several types as one; "" is the name of the task type.
        singleton: what a second pending task of this type on one node does.
        timeout: how long an executor may take; None leaves it to the engine.
    """

    task: type[Task]
    group: str
    singleton: Singleton | None
    timeout: timedelta | None


class Registry:
    """Machine definitions, task types and executors, by id. Filled once at start-up, in one thread.

    With `debug`, trees check that a machine's data changes only inside transitions.

    Semantics: Temporal `hsm.Registry`.
    """

    def __init__(self, *, debug: bool = False) -> None:
        self.debug: Final = debug
        self._machines: dict[int, MachineDefinition[Any]] = {}
        self._type_ids: dict[type, tuple[int, ...]] = {}
        self._restorable: set[int] = set()
        self._tasks: dict[int, TaskRegistration] = {}
        self._serializers: dict[int, TaskSerializer[Any]] = {}
        self._executors: dict[int, Executor[Any]] = {}
        self._timer_executors: dict[int, TimerExecutor[Any]] = {}

    def register_machine(self, definition: MachineDefinition[Any]) -> None:
        """Make a type of machine known.

        Raises:
            DuplicateRegistrationError: its id or its name is taken.
            TypeError: it is no definition, but the class of the data, for example.
            ValueError: its id is not an int32.
        """
        kind: object = getattr(definition, "type", None)
        if not isinstance(kind, MachineType):
            raise TypeError(
                f"{definition!r} is no definition of machines:"
                " `attrs_definition` and `proto_definition` make one"
            )
        _check_id("machine type", kind.id, kind.name)
        for other in self._machines.values():
            if other.type.id == kind.id or other.type.name == kind.name:
                raise DuplicateRegistrationError(f"machine type {kind} clashes with {other.type}")
        self._machines[kind.id] = definition
        self._type_ids.clear()

    def machine(self, type_id: int) -> MachineDefinition[Any] | None:
        """The definition of a machine type."""
        return self._machines.get(type_id)

    def machines(self) -> Iterator[MachineDefinition[Any]]:
        """All definitions, in order of registration."""
        return iter(self._machines.values())

    def type_of(self, data: object) -> int:
        """The id of the machine type whose definition says that its data is of exactly this class.

        Raises:
            NotRegisteredError: no definition says so, or more than one does.
        """
        class_ = type(data)
        found = self._type_ids.get(class_)
        if found is None:
            found = self._type_ids[class_] = tuple(
                definition.type.id
                for definition in self._machines.values()
                if getattr(definition, "data_type", None) is class_
            )
        if len(found) == 1:
            return found[0]
        name = class_.__qualname__
        if not found:
            raise NotRegisteredError(
                f"no registered machine type says that it holds a {name}:"
                " call `register_machine` first, or name the type"
            )
        raise NotRegisteredError(f"{len(found)} registered machine types hold a {name}; name the type")

    def register_task(
        self,
        task: type[TaskT],
        *,
        group: str = "",
        singleton: Singleton | None = None,
        timeout: timedelta | None = None,
    ) -> None:
        """Make a type of task known; one that has no serializer gets that for attrs classes.

        Raises:
            DuplicateRegistrationError: its id or its name is taken.
            TypeError: the class has no `type` or `kind`, misspells `validate`, or is no attrs class
                (register its serializer yourself, before the task).
        """
        kind = _task_type(task)
        _check_names(task)
        for other in self._tasks.values():
            taken = other.task.type
            if taken.id == kind.id or taken.name == kind.name:
                raise DuplicateRegistrationError(f"task type {kind} clashes with {taken}")
        if kind.id not in self._serializers:
            self._serializers[kind.id] = task_serializer(task)
        self._tasks[kind.id] = TaskRegistration(task, group or kind.name, singleton, timeout)

    def task(self, type_id: int) -> TaskRegistration | None:
        """What is registered of a task type."""
        return self._tasks.get(type_id)

    def register_task_serializer(self, type_id: int, serializer: TaskSerializer[Any]) -> None:
        """Use `serializer` for tasks of a type.

        Raises:
            DuplicateRegistrationError: there is one already.
        """
        if type_id in self._serializers:
            raise DuplicateRegistrationError(f"task type {type_id} has a serializer already")
        self._serializers[type_id] = serializer

    def task_serializer(self, type_id: int) -> TaskSerializer[Any] | None:
        """The serializer of a task type."""
        return self._serializers.get(type_id)

    def register_executor(self, task: type[TaskT], executor: Executor[TaskT]) -> None:
        """Run tasks of this class with `executor`, outside the lock.

        Raises:
            DuplicateRegistrationError: the task type has an executor of either kind.
        """
        self._executors[self._executor_slot(task)] = executor

    def register_timer_executor(self, task: type[TaskT], executor: TimerExecutor[TaskT]) -> None:
        """Run timers of this class with `executor`, under the lock and in one commit.

        Raises:
            DuplicateRegistrationError: the task type has an executor of either kind.
            TypeError: the executor is a coroutine function.
        """
        _check_synchronous(executor, "a timer executor")
        self._timer_executors[self._executor_slot(task)] = executor

    def executor(self, task: type[TaskT]) -> Executor[TaskT] | None:
        """The executor that runs outside the lock."""
        return self._executors.get(task.type.id)

    def timer_executor(self, task: type[TaskT]) -> TimerExecutor[TaskT] | None:
        """The executor that runs under the lock."""
        return self._timer_executors.get(task.type.id)

    def required_machine(self, type_id: int) -> MachineDefinition[Any]:
        """The definition of a machine type.

        Raises:
            NotRegisteredError: there is none.
        """
        definition = self._machines.get(type_id)
        if definition is None:
            raise NotRegisteredError(f"machine type {type_id} is not registered")
        return definition

    def _executor_slot(self, task: type[Task]) -> int:
        kind = _task_type(task)
        if kind.id in self._executors or kind.id in self._timer_executors:
            raise DuplicateRegistrationError(f"task type {kind} has an executor already")
        return kind.id


def _task_type(task: type[Task]) -> TaskType:
    kind = getattr(task, "type", None)
    if not isinstance(kind, TaskType):
        raise TypeError(f"{task.__qualname__} needs a class attribute `type`, a TaskType")
    _check_id("task type", kind.id, kind.name)
    if not hasattr(task, "kind") and "kind" not in _field_names(task):
        raise TypeError(f"{task.__qualname__} needs a property `kind`")
    return kind


def _field_names(task: type[Task]) -> set[str]:
    fields: tuple[attrs.Attribute[Any], ...] = getattr(task, "__attrs_attrs__", ())
    return {field.name for field in fields}


def _check_names(task: type[Task]) -> None:
    """A misspelt or unusable `validate` would make tasks of the class stale or valid at the wrong time."""
    fields = _field_names(task)
    for name in sorted(set(dir(task)).difference(_TASK_PROTOCOL, fields)):
        if name.startswith("_") or not callable(getattr(task, name)):
            continue
        meant = difflib.get_close_matches(name.lower(), _TASK_PROTOCOL, n=1, cutoff=0.8)
        if meant:
            raise TypeError(f"{task.__qualname__}.{name} looks like a misspelt `{meant[0]}`")
    validate: object = getattr(task, "validate", None)
    if "validate" in fields or not (validate is None or inspect.isroutine(validate)):
        raise TypeError(f"{task.__qualname__}.validate has to be a method")
    _check_synchronous(validate, f"{task.__qualname__}.validate")


def _check_synchronous(function: object, name: str) -> None:
    """What nobody awaits would never run."""
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{name} has to be a plain function, not a coroutine function")


def _check_id(what: str, id_: int, name: str) -> None:
    if id_ not in _INT32:
        raise ValueError(f"{what} {name!r}: id {id_} is not an int32")
