"""The service of machines that come from configuration: gRPC, Amazon SQS, streams of Redis. Needs extras.

`hsm.fsm.service.sqs` and `hsm.fsm.service.redis_streams` have the queues, `hsm.fsm.service.otel` what
measures.
"""

from hsm.fsm.service.calls import Calls
from hsm.fsm.service.codes import status_of
from hsm.fsm.service.errors import (
    CallRefusedError,
    PoisonError,
    QueueError,
    Refusal,
    ServiceAddressError,
    ServiceError,
    TLSFileError,
)
from hsm.fsm.service.intake import Delivery, EventSink, Intake, MessageQueue
from hsm.fsm.service.messages import decode_request, decode_response, encode_request, encode_response
from hsm.fsm.service.publishing import OutcomePublisher
from hsm.fsm.service.server import DEFAULT_PORT, FSMServer, ServerOptions
from hsm.fsm.service.servicer import SERVICE_NAME, FSMServicer
from hsm.fsm.service.telemetry import CallObserver, NoTelemetry, ServiceTelemetry
from hsm.fsm.service.tls import ClientTLS, ServerTLS

__all__ = [
    "DEFAULT_PORT",
    "SERVICE_NAME",
    "CallObserver",
    "CallRefusedError",
    "Calls",
    "ClientTLS",
    "Delivery",
    "EventSink",
    "FSMServer",
    "FSMServicer",
    "Intake",
    "MessageQueue",
    "NoTelemetry",
    "OutcomePublisher",
    "PoisonError",
    "QueueError",
    "Refusal",
    "ServerOptions",
    "ServerTLS",
    "ServiceAddressError",
    "ServiceError",
    "ServiceTelemetry",
    "TLSFileError",
    "decode_request",
    "decode_response",
    "encode_request",
    "encode_response",
    "status_of",
]
