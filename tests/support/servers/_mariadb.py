"""MariaDB, from the system's package."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from tests.support.servers._process import MissingServerError, account, on_path
from tests.support.servers._server import LocalServer, Options, query, random_name, user_info

_PACKAGE = "Debian's mariadb-server"


class MariadbServer(LocalServer):
    """A server with a data folder of its own; every place is a database."""

    def __init__(self, options: Options) -> None:
        self._server = _find("mariadbd", "mysqld")
        self._installer = _find("mariadb-install-db")
        self._client = _find("mariadb", "mysql")
        super().__init__("mariadb", options, account("mysql"))
        self._socket = self.folder.path / "s"

    @property
    def url(self) -> str:
        return self._url("hsm")

    def fresh_url(self) -> str:
        database = random_name()
        self.sql(f"CREATE DATABASE {database}")
        return self._url(database)

    def _url(self, database: str) -> str:
        options: dict[str, str | Path] = {}
        if self.ca_file is not None:
            options = {"tls": "require", "tls_ca": self.ca_file}
        user = user_info("root" if self.options.password is None else "hsm", self.options.password)
        return f"mysql://{user}127.0.0.1:{self.port}/{database}" + (f"?{query(options)}" if options else "")

    def make_data(self) -> None:
        arguments = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        self.run(str(self._installer), "--no-defaults", f"--datadir={self.data}", *arguments)

    def command(self) -> list[str]:
        command = [str(self._server), "--no-defaults", f"--datadir={self.data}", f"--socket={self._socket}"]
        command += [
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            f"--pid-file={self.folder.path / 'pid'}",
        ]
        command.append("--max-allowed-packet=64M")
        # 2: written at commit, so that it survives the process, but not flushed to the disk.
        command.append(f"--innodb-flush-log-at-trx-commit={1 if self.options.durable else 2}")
        if self.certificate is not None:
            command += [f"--ssl-cert={self.certificate.chain}", f"--ssl-key={self.certificate.key}"]
            command += [f"--ssl-ca={self.certificate.ca}", "--require-secure-transport=ON"]
        return command

    def ready(self, pid: int) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            return connection.recv(5)[4:] == b"\x0a"  # the greeting of a server that does not refuse

    def set_up(self) -> None:
        statements = ["CREATE DATABASE hsm"]
        if (password := self.options.password) is not None:
            quoted = "'" + password.replace("\\", "\\\\").replace("'", "''") + "'"
            statements += [
                # The nameless users of this host would stand before `hsm` and have no password.
                "DELETE FROM mysql.global_priv WHERE User = '' OR User = 'root' AND Host <> 'localhost'",
                "FLUSH PRIVILEGES",
                f"CREATE USER hsm@'%' IDENTIFIED BY {quoted}",
                "GRANT ALL ON *.* TO hsm@'%'",
                f"ALTER USER root@localhost IDENTIFIED BY {quoted}",
            ]
        self.sql("; ".join(statements), password=None)

    def sql(self, statements: str, *, password: str | None = "") -> str:
        """Run statements as the administrator; what they have returned, tabs between columns."""
        known = self.options.password if password == "" else password
        environment = os.environ | ({} if known is None else {"MYSQL_PWD": known})
        command = [str(self._client), "--no-defaults", "--batch", "--skip-column-names", "--user=root"]
        result = subprocess.run(
            [*command, f"--socket={self._socket}", f"--execute={statements}"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        if result.returncode != 0:
            raise RuntimeError(f"{statements}: {result.stderr.strip()}")
        return result.stdout


def _find(*names: str) -> Path:
    program = on_path(*names)
    if program is None:
        raise MissingServerError(f"MariaDB is missing ({names[0]}): install {_PACKAGE}")
    return program
