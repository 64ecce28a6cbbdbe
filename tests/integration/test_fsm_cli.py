"""`hsm fsm apply`, `send`, `get` and `states`: through a service and on a database, with the same answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import pytest
import trustme
import yaml
from click.testing import CliRunner

from hsm.cli._app import cli
from hsm.fsm.database import DatabaseStore
from hsm.fsm.service import FSMServer, ServerTLS
from persistence.proto.statemachine_pb2 import FiniteStateMachine
from tests.support.deliveries import Result
from tests.support.fsm.commands import hsm_fsm
from tests.support.fsm.configurations import orders
from tests.support.fsm.service import options

MACHINES = """\
apiVersion: v1alpha
kind: Configuration
spec:
  name: orders
  version: v1
  states: [new, paid, shipped]
  startingState: new
  transitions:
    - {from: new, to: paid, event: pay}
    - {from: paid, to: shipped, event: ship}
---
apiVersion: v1alpha
kind: FiniteStateMachine
id: o1
spec:
  configId: orders:v1
---
apiVersion: v1alpha
kind: EventRequest
spec:
  config: orders
  id: o1
  event: {eventId: e1, transition: {event: pay}}
"""


class Run(Protocol):
    """Runs `hsm fsm`."""

    async def __call__(self, *arguments: str) -> Result: ...


@pytest.fixture(params=["service", "database"])
async def run(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Run]:
    """The commands against a service in this process, and against the database itself."""
    url = f"sqlite:///{tmp_path}/fsm.db"
    (tmp_path / "machines.yaml").write_text(MACHINES)

    async def call(*arguments: str) -> Result:
        return await hsm_fsm(*arguments, *target, folder=tmp_path)

    if request.param == "database":
        target: tuple[str, ...] = ("--db", url)
        yield call
        return
    async with DatabaseStore(url) as store, FSMServer(store, options()) as server:
        target = ("--addr", f"127.0.0.1:{server.port}", "--insecure")
        yield call


async def test_apply_send_get_and_states(run: Run, tmp_path: Path) -> None:
    applied = await run("apply", "machines.yaml")
    assert (applied.status, applied.err) == (0, "")
    assert applied.out.splitlines() == [
        "configuration orders:v1: created",
        "machine o1: created, in state new",
        "event e1: Ok",
    ]
    again = await run("apply", "machines.yaml")
    assert again.status == 1
    assert again.out.splitlines() == [
        "configuration orders:v1: exists already",
        "machine o1: exists already; --replace writes it anew",
        "event e1: Ok",
    ]

    sent = await run("send", "orders", "o1", "ship", "--event-id", "e2", "--details", "by train")
    assert (sent.status, sent.out) == (0, "event e2: Ok\n")
    refused = await run("send", "orders", "o1", "pay", "--event-id", "e3")
    assert refused.status == 1
    assert refused.out.startswith("event e3: TransitionNotAllowed: ")

    machine = yaml.safe_load((await run("get", "machine", "orders", "o1")).out)
    assert machine["spec"]["state"] == "shipped"
    assert [event["eventId"] for event in machine["spec"]["history"]] == ["e1", "e2"]
    states = await run("states", "orders", "--json")
    assert json.loads(states.out) == {"new": 0, "paid": 0, "shipped": 1}

    # What is shown can be applied: to another database here.
    shown = await run("get", "configuration", "orders:v1")
    (tmp_path / "copy.yaml").write_text(f"{shown.out}---\n{yaml.safe_dump(machine)}")
    copied = await hsm_fsm("apply", "copy.yaml", "--db", "sqlite:///copy.db", folder=tmp_path)
    assert (copied.status, copied.err) == (0, "")
    assert "machine o1: created, in state shipped" in copied.out


async def test_what_is_shown(run: Run) -> None:
    assert (await run("apply", "machines.yaml")).status == 0

    assert (await run("get", "configuration")).out == "orders\n"
    assert (await run("get", "configuration", "orders")).out == "orders:v1\n"
    event = json.loads((await run("get", "event", "orders", "e1", "--json")).out)
    assert (event["eventId"], event["transition"]) == ("e1", {"event": "pay"})
    outcome = yaml.safe_load((await run("get", "outcome", "orders", "e1")).out)
    assert outcome == {"eventId": "e1", "code": "Ok", "id": "o1", "config": "orders", "revision": "2"}
    assert (await run("states", "orders")).out == "new      0\npaid     1\nshipped  0\n"
    assert (await run("states", "orders", "--list", "paid")).out == "o1\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("get", "configuration", "orders:v1"),
        ("get", "configuration", "orders"),
        ("get", "machine", "orders", "o1"),
        ("get", "event", "orders", "e1"),
        ("get", "outcome", "orders", "e1"),
        ("states", "orders"),
        ("send", "orders", "o1", "pay"),
    ],
)
async def test_what_is_not_there(run: Run, arguments: tuple[str, ...]) -> None:
    result = await run(*arguments)

    assert result.status == 1
    assert len((result.out + result.err).splitlines()) <= 1


async def test_file_with_an_error_is_applied_not_at_all(run: Run, tmp_path: Path) -> None:
    (tmp_path / "machines.yaml").write_text(MACHINES.replace("configId", "configurationId"))

    result = await run("apply", "machines.yaml")

    assert result.status == 2
    assert result.err.startswith("hsm: machines.yaml, line 16: unknown key 'configurationId' in spec")
    assert (await run("get", "configuration")).out == ""


async def test_other_content_under_the_same_version_is_refused(run: Run, tmp_path: Path) -> None:
    assert (await run("apply", "machines.yaml")).status == 0
    (tmp_path / "machines.yaml").write_text(MACHINES.replace("event: ship", "event: send"))

    result = await run("apply", "machines.yaml")

    assert result.status == 1
    assert "orders:v1: exists with another content" in result.out


async def test_replace_writes_a_machine_anew(run: Run) -> None:
    assert (await run("apply", "machines.yaml")).status == 0

    result = await run("apply", "machines.yaml", "--replace")

    assert (result.status, "machine o1: replaced, in state new" in result.out) == (0, True)
    # The event is known, and is not processed again.
    assert json.loads((await run("states", "orders", "--json")).out)["new"] == 1


async def test_expected_revision(run: Run) -> None:
    assert (await run("apply", "machines.yaml")).status == 0

    refused = await run("send", "orders", "o1", "ship", "--expect-revision", "7")
    accepted = await run("send", "orders", "o1", "ship", "--expect-revision", "2")

    assert (refused.status, "RevisionMismatch" in refused.out) == (1, True)
    assert accepted.status == 0


async def test_event_whose_outcome_nobody_waits_for(run: Run) -> None:
    assert (await run("apply", "machines.yaml")).status == 0

    result = await run("send", "orders", "o1", "ship", "--event-id", "e2", "--wait", "0")

    assert (result.status, result.out) == (0, "event e2: sent\n")


async def test_pending_event_has_a_status_of_its_own(tmp_path: Path) -> None:
    async with DatabaseStore(f"sqlite:///{tmp_path}/fsm.db") as store:
        await store.put_config(orders())
        await store.put_state_machine("o1", FiniteStateMachine(config_id="orders:v1", state="start"))
        from hsm.fsm import new_event

        event = new_event("accept")
        event.event_id = "e1"
        await store.put_event(event, "orders")
    result = await hsm_fsm(
        "get", "outcome", "orders", "e1", "--db", f"sqlite:///{tmp_path}/fsm.db", folder=tmp_path
    )

    assert (result.status, "pending" in result.out) == (3, True)


async def test_service_with_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name in ("server", "client"):
        issued = authority.issue_cert("127.0.0.1", "localhost")
        (tmp_path / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(tmp_path / f"{name}-key.pem")
    (tmp_path / "machines.yaml").write_text(MACHINES)
    tls = ServerTLS(tmp_path, mutual=True)
    async with (
        DatabaseStore(f"memory://{tmp_path.name}") as store,
        FSMServer(store, options(tls=tls)) as server,
    ):
        apply = ("apply", "machines.yaml", "--addr", f"localhost:{server.port}", "--timeout", "5")
        ours = ("--tls-ca", "ca.pem", "--tls-cert", "client.pem", "--tls-key", "client-key.pem")
        accepted = await hsm_fsm(*apply, *ours, folder=tmp_path)
        refused = await hsm_fsm(*apply, "--tls-ca", "ca.pem", folder=tmp_path)

    assert (accepted.status, accepted.err) == (0, "")
    assert (refused.status, refused.err.startswith("hsm: ")) == (2, True)
    assert "Traceback" not in refused.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("get", "configuration", "--addr", "127.0.0.1:1", "--insecure"),
        ("send", "orders", "o1", "pay", "--addr", "127.0.0.1:1", "--insecure"),
        ("get", "configuration", "--db", "memory://x"),
        ("get", "configuration", "--db", "nothing://x"),
        ("get", "configuration", "--redis-layout"),
        ("get", "machine", "orders", "\udcff", "--addr", "127.0.0.1:1", "--insecure"),
        ("send", "orders", "o1", "pay\udcff", "--addr", "127.0.0.1:1", "--insecure"),
        ("get", "configuration", "--tls-cert", __file__),
    ],
)
async def test_what_cannot_be_used_is_told_in_one_line(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = await hsm_fsm(*arguments, folder=tmp_path)

    assert result.status == 2
    assert "Traceback" not in result.err
    assert result.out == ""


def test_every_command_explains_itself() -> None:
    for command in ("apply", "send", "get", "states", "serve"):
        result = CliRunner().invoke(cli, ["fsm", command, "--help"])
        assert result.exit_code == 0
