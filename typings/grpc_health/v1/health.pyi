from grpc_health.v1 import _async as aio

__all__ = ["SERVICE_NAME", "aio"]

SERVICE_NAME: str
