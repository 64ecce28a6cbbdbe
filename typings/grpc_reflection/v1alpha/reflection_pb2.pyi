from collections.abc import Sequence

from google.protobuf.message import Message

class ServerReflectionRequest(Message):
    def __init__(self, *, list_services: str = ..., file_containing_symbol: str = ...) -> None: ...

class ServiceResponse(Message):
    name: str

class ListServiceResponse(Message):
    service: Sequence[ServiceResponse]

class FileDescriptorResponse(Message):
    file_descriptor_proto: Sequence[bytes]

class ServerReflectionResponse(Message):
    list_services_response: ListServiceResponse
    file_descriptor_response: FileDescriptorResponse
