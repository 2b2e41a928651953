"""What is used of `aiohttp.web`, without the rest of it: its applications, routes and files would be 1.2 MB."""

from __future__ import annotations

from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response, StreamResponse
from aiohttp.web_server import Server
from aiohttp.web_ws import WebSocketResponse

__all__ = ["BaseRequest", "RequestHandler", "Response", "Server", "StreamResponse", "WebSocketResponse"]
