"""Anthropic's messages, both ways round."""

from __future__ import annotations

from proxy.protocol.conversation import Conversation
from proxy.protocol.events import Event, Fault
from proxy.protocol.message import HeaderList, ResponseHead
from proxy.providers.anthropic_answer import (
    MessagesReader,
    MessagesWriter,
    events_of_message,
    fault_object,
    message_body,
)
from proxy.providers.anthropic_read import FAMILY, read_messages
from proxy.providers.anthropic_write import message_headers, write_messages
from proxy.providers.base import Asked, Encoding, Fields, Form, Reader, Writer, dump
from proxy.providers.faults import classify
from proxy.providers.relay import relay_body


class Anthropic:
    """``POST /v1/messages``."""

    name = "anthropic"
    family = FAMILY
    wire = "messages"

    def read_request(self, fields: Fields, model: str, streams: bool) -> Conversation:
        return read_messages(fields, model, streams)

    def write_request(self, conversation: Conversation, form: Form) -> Encoding:
        return write_messages(conversation, form)

    def relay_request(self, body: bytes, fields: Fields, form: Form) -> Encoding:
        edited = relay_body(body, fields, form)
        return Encoding("/v1/messages", message_headers(form), edited, streams=fields.get("stream") is True)

    def credential(self, key: str) -> HeaderList:
        return [(b"x-api-key", key.encode())]

    def reader(self, encoding: Encoding) -> Reader:
        return MessagesReader(encoding.json_tool)

    def events_of(self, body: bytes, encoding: Encoding) -> list[Event]:
        return events_of_message(body, encoding.json_tool)

    def writer(self, asked: Asked) -> Writer:
        return MessagesWriter(asked)

    def body_of(self, events: list[Event], asked: Asked) -> bytes:
        return message_body(events, asked)

    def classify(self, head: ResponseHead, body: bytes) -> Fault:
        return classify(head, body)

    def fault_body(self, fault: Fault, request_id: str) -> tuple[int, bytes]:
        return fault.cause.value.anthropic_status, dump(fault_object(fault, request_id))
