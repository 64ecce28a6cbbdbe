from grpc.aio import Channel, Server, UnaryStreamMultiCallable, UnaryUnaryMultiCallable

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

class HealthServicer: ...

class HealthStub:
    Check: UnaryUnaryMultiCallable[HealthCheckRequest, HealthCheckResponse]
    Watch: UnaryStreamMultiCallable[HealthCheckRequest, HealthCheckResponse]
    def __init__(self, channel: Channel) -> None: ...

def add_HealthServicer_to_server(servicer: HealthServicer, server: Server) -> None: ...
