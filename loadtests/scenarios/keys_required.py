"""A hundred thousand virtual keys, of which some are asked with far more often than others."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import sqlite3
from dataclasses import replace
from pathlib import Path

from loadtests.drive.spec import Spec, make_body
from loadtests.peers import Running
from loadtests.stage import Stage, Upstream

ABOUT = (
    "Distinct JSON requests with virtual keys required: 100,000 keys (2,000 with --quick) in SQLite, presented by "
    "Zipf's law (exponent 1), beside the same requests with credentials that are passed through."
)


def run(stage: Stage) -> None:
    state = stage.make_folder()
    try:
        tokens = fill(state, stage.scale.choose(2_000, 100_000))
    except ImportError as error:
        stage.note(f"left out: this checkout has no virtual keys ({error})")
        return
    path = state / "tokens.txt"
    path.write_bytes(b"\n".join(tokens))
    # As many credentials of somebody else's, as long as the keys.
    Path(f"{path}-foreign").write_bytes(b"\n".join(b"sk-" + token[3:] for token in tokens))
    spec = Spec("closed", 0, requests=stage.scale.requests, seconds=stage.scale.closed_s, tokens=str(path))
    flags = ("--auth", "required", "--state-dir", str(state))
    with stage.upstream() as upstream:
        keyed = stage.start("sameflight", upstream, flags=flags)
        try:
            answers = _ask(keyed, tokens[0]), _ask(keyed, b"sf-" + b"0" * 49)
            if answers != (200, 401):
                stage.note(f"left out: keys are not heeded here (a right one is answered {answers[0]}, a wrong one "
                           f"{answers[1]})")  # fmt: skip
                return
            _compare(stage, keyed, upstream, spec)
        finally:
            keyed.stop()


def _compare(stage: Stage, keyed: Running, upstream: Upstream, spec: Spec) -> None:
    plain = stage.start("sameflight", upstream)
    try:
        stage.describe("keys", spec, keys=stage.scale.choose(2_000, 100_000))
        for number in stage.rounds():
            for variant, peer in (("keys", keyed), ("credentials", plain)):
                one = spec if variant == "keys" else replace(spec, tokens=spec.tokens + "-foreign")
                row = stage.take(variant, peer, number, stage.aim(one, peer), upstream)
                if variant == "keys":
                    row.figures.update(_read_ring(peer))
    finally:
        plain.stop()


def fill(state: Path, count: int) -> list[bytes]:
    """So many keys in the database of a state directory; returns them. One is made as the product makes it, the
    others are copies of its row with digests of their own, because a transaction for each would take minutes."""
    from proxy.access.pepper import load_pepper
    from proxy.access.token import Digester, mint
    from proxy.config.keys import KeyRecord
    from proxy.store.open import open_store
    from proxy.store.sqlite import FILE

    digest = Digester(load_pepper("", state).secret).digest
    tokens = [mint() for _ in range(count)]

    async def begin() -> None:
        store = open_store("", state)
        await store.open()
        try:
            await store.add_key(KeyRecord("key_" + "0" * 16, digest(tokens[0]), "load 0", created_at=1.0))
        finally:
            await store.close()

    asyncio.run(begin())
    with sqlite3.connect(state / FILE) as database:
        found = database.execute("SELECT * FROM api_keys")
        names = [column[0] for column in found.description]
        row = dict(zip(names, found.fetchone(), strict=True))
        rows = (
            tuple({**row, "id": f"key_{number:016x}", "digest": digest(token), "name": f"load {number}"}.values())
            for number, token in enumerate(tokens[1:], 1)
        )
        database.executemany(f"INSERT INTO api_keys VALUES ({', '.join('?' * len(names))})", rows)
    database.close()
    return tokens


def _ask(peer: Running, token: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", peer.port, timeout=10)
    try:
        headers = {"content-type": "application/json", "authorization": "Bearer " + token.decode()}
        connection.request("POST", "/v1/chat/completions", make_body(0, 500, stream=False), headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def _read_ring(peer: Running) -> dict[str, float]:
    """Share of the keys that were found in memory, as the process tells it."""
    connection = http.client.HTTPConnection("127.0.0.1", peer.admin_port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    found = re.search(r"^sameflight_key\w*hit_(?:rate|ratio)\w*(?:{[^}]*})? ([\d.e+-]+)$", text, re.MULTILINE)
    return {} if found is None else {"key_hit_rate": float(json.loads(found[1]))}
