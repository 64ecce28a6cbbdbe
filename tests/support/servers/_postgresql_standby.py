"""A standby of a PostgreSQL server, which takes its place when it is told to."""

from __future__ import annotations

from tests.support.servers._postgresql import PostgresqlServer
from tests.support.servers._server import Options


class PostgresqlStandby(PostgresqlServer):
    """Repeats what the primary writes."""

    def __init__(self, primary: PostgresqlServer) -> None:
        super().__init__(Options(own=True))
        self._primary = primary

    def make_data(self) -> None:
        source = ["-h", "127.0.0.1", "-p", str(self._primary.port), "-U", "postgres"]
        self.run(
            str(self._programs / "pg_basebackup"), "-D", str(self.data), *source, "-R", "--no-sync", "-cfast"
        )

    def ready(self, pid: int) -> bool:
        lines = (self.data / "postmaster.pid").read_text().splitlines()
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() in {"ready", "standby"}

    def promote(self) -> None:
        """Be the primary from now on."""
        import psycopg

        parameters = f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"
        with psycopg.connect(parameters, autocommit=True) as connection:
            if connection.execute("SELECT pg_promote()").fetchone() != (True,):
                raise RuntimeError("the standby was not promoted in time")
