from collections.abc import Iterable

from grpc.aio import Server

SERVICE_NAME: str

def enable_server_reflection(service_names: Iterable[str], server: Server) -> None: ...
