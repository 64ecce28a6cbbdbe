from grpc.aio import Channel, StreamStreamMultiCallable

from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

class ServerReflectionStub:
    ServerReflectionInfo: StreamStreamMultiCallable[ServerReflectionRequest, ServerReflectionResponse]
    def __init__(self, channel: Channel) -> None: ...
