"""OpenAI's responses, both ways round; as far as they need no memory at the vendor's."""

from __future__ import annotations

from proxy.protocol.conversation import Conversation
from proxy.protocol.events import Event, Fault
from proxy.protocol.message import HeaderList, ResponseHead
from proxy.providers.base import JSON_HEADERS, Asked, Encoding, Fields, Form, Reader, Writer, dump
from proxy.providers.faults import classify, fault_members
from proxy.providers.relay import relay_body
from proxy.providers.responses_answer import ResponsesReader, events_of_response, response_body
from proxy.providers.responses_read import FAMILY, read_response
from proxy.providers.responses_stream import ResponsesWriter
from proxy.providers.responses_write import write_response


class Responses:
    """``POST /v1/responses``."""

    name = "responses"
    family = FAMILY
    wire = "responses"

    def read_request(self, fields: Fields, model: str, streams: bool) -> Conversation:
        return read_response(fields, model, streams)

    def write_request(self, conversation: Conversation, form: Form) -> Encoding:
        return write_response(conversation, form)

    def relay_request(self, body: bytes, fields: Fields, form: Form) -> Encoding:
        edited = relay_body(body, fields, form)
        return Encoding("/v1/responses", JSON_HEADERS, edited, streams=fields.get("stream") is True)

    def credential(self, key: str) -> HeaderList:
        return [(b"authorization", b"Bearer " + key.encode())]

    def reader(self, encoding: Encoding) -> Reader:
        return ResponsesReader()

    def events_of(self, body: bytes, encoding: Encoding) -> list[Event]:
        return events_of_response(body)

    def writer(self, asked: Asked) -> Writer:
        return ResponsesWriter(asked)

    def body_of(self, events: list[Event], asked: Asked) -> bytes:
        return response_body(events, asked)

    def classify(self, head: ResponseHead, body: bytes) -> Fault:
        return classify(head, body)

    def fault_body(self, fault: Fault, request_id: str) -> tuple[int, bytes]:
        return fault.cause.value.openai_status, dump({"error": fault_members(fault)})


class AzureResponses(Responses):
    """The same at Azure: its own path and header."""

    name = "azure"

    def relay_request(self, body: bytes, fields: Fields, form: Form) -> Encoding:
        return super().relay_request(body, fields, form)._replace(path="/openai/v1/responses")

    def credential(self, key: str) -> HeaderList:
        return [(b"api-key", key.encode())]
