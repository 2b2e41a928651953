"""``python -m loadtests.peers.naive_proxy PORT UPSTREAM [CA]``: the whole of the naive proxy."""

from __future__ import annotations

import ssl
import sys

from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

from proxy.cli.loop import new_event_loop

_DROPPED = frozenset(("host", "connection", "content-length", "transfer-encoding", "keep-alive", "content-encoding"))
_UPSTREAM = web.AppKey("upstream", str)
_SESSION = web.AppKey("session", ClientSession)


async def relay(request: web.Request) -> web.StreamResponse:
    """Ask the upstream and pass on what it says, as it comes."""
    body = await request.read()
    headers = {name: value for name, value in request.headers.items() if name.lower() not in _DROPPED}
    url = request.app[_UPSTREAM] + request.path_qs
    async with request.app[_SESSION].request(request.method, url, data=body, headers=headers) as answer:
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in _DROPPED}
        if not answer.headers.get("content-type", "").startswith("text/event-stream"):
            return web.Response(status=answer.status, headers=kept, body=await answer.read())
        response = web.StreamResponse(status=answer.status, headers=kept)
        await response.prepare(request)
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response


def make_application(upstream: str, ca_file: str) -> web.Application:
    app = web.Application(client_max_size=64 << 20)
    app[_UPSTREAM] = upstream

    async def hold_session(app: web.Application):  # type: ignore[no-untyped-def]
        trust = ssl.create_default_context(cafile=ca_file) if ca_file else True
        connector = TCPConnector(limit=0, ssl=trust)
        async with ClientSession(connector=connector, timeout=ClientTimeout(total=None)) as session:
            app[_SESSION] = session
            yield

    app.cleanup_ctx.append(hold_session)
    app.router.add_route("*", "/{path:.*}", relay)
    return app


if __name__ == "__main__":
    web.run_app(
        make_application(sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else ""),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        backlog=16384,
        access_log=None,
        print=lambda *_: None,
        loop=new_event_loop(),
    )
