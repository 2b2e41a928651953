"""The layers of `proxy/`: a module imports from lower layers and from its own room, and each library has one room."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "proxy"

# Room or root module -> layer. `mock` is the built-in upstream and belongs to nobody's request path.
LAYERS = {
    "errors": 0,
    "clock": 0,
    "linear": 0,
    "protocol": 1,
    "config": 2,
    "telemetry": 2,
    "valkey": 3,
    "policy": 3,
    "accounting": 3,
    "access": 4,
    "cache": 4,
    "flight": 4,
    "guard": 4,
    "providers": 4,
    "pressure": 4,
    "store": 4,
    "upstream": 4,
    "mock": 4,
    "work": 5,
    "access_line": 5,
    "shaping": 5,
    "summaries": 5,
    "admission": 5,
    "clearance": 5,
    "counterparts": 5,
    "usage_row": 5,
    "exchange": 5,
    "intake": 5,
    "guarded_intake": 5,
    "screening": 5,
    "screening_answers": 5,
    "vetting": 5,
    "listing": 5,
    "model_lists": 5,
    "failover": 5,
    "formation": 5,
    "production": 5,
    "reading": 5,
    "pipeline": 5,
    "books": 5,
    "policy_books": 5,
    "responder": 5,
    "tiering": 5,
    "shortening": 5,
    "errand": 5,
    "edge": 6,
    "janitor": 7,
    "exposure": 7,
    "fleet": 7,
    "live": 7,
    "exposure_vault": 7,
    "exposure_retries": 7,
    "exposure_patterns": 7,
    "exposure_upstream": 7,
    "exposure_tiers": 7,
    "exposure_summaries": 7,
    "exposure_formation": 7,
    "exposure_flags": 7,
    "flag_feed": 7,
    "flag_snapshot": 7,
    "guarding": 7,
    "vault": 7,
    "relief": 7,
    "workers": 7,
    "drain": 7,
    "app": 7,
    "cli": 7,
    "__main__": 7,
}

# Modules of a room that lie higher than the rest of it: the pure part of accounting is known to stores and caches,
# the part that has files and waits is not.
HIGHER = {
    f"accounting/{name}.py": 4
    for name in ("directory", "ledger", "reader", "recovery", "refused", "ring", "segment", "spool", "upkeep")
}

# Third-party module -> the rooms (or modules) that may import it.
LIBRARIES = {
    "aiohttp": ("edge/", "upstream/session.py", "upstream/websocket.py", "workers/admin.py"),
    "aiohappyeyeballs": ("upstream/connect.py",),
    "httptools": ("upstream/wire.py", "upstream/response.py", "mock/"),
    "uvloop": ("cli/loop.py",),
    "aiocache": ("cache/memory.py", "cache/postgres.py", "cache/valkey.py"),
    "aioprometheus": ("telemetry/metrics.py",),
    "structlog": ("telemetry/log.py",),
    "re2": ("linear.py",),
    "yaml": ("config/yaml_text.py",),
    "msgspec": ("config/", "accounting/"),
    "asyncpg": ("store/",),
    "redis": ("valkey.py",),
    "orjson": (
        *("protocol/", "providers/", "edge/", "config/", "telemetry/", "guard/"),
        "policy/local_answer.py",
        *("cache/recording.py", "mock/", "cli/", "books.py", "failover/", "formation/", "workers/"),
    ),
    "brotli": ("protocol/encoding.py",),
    "backports": ("protocol/encoding.py",),
    "compression": ("protocol/encoding.py",),
}

# Rooms that decide and never wait.
NO_ASYNCIO = ("errors", "clock", "protocol", "config", "telemetry", "policy", "accounting", "providers")

MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def imports_of(module: str) -> Iterator[tuple[str, int]]:
    """Every imported module's dotted name with its line; what is imported for types alone counts as well."""
    tree = ast.parse((ROOT / module).read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively"
            yield node.module or "", node.lineno


def room_of(module: str) -> str:
    return module.split("/", maxsplit=1)[0].removesuffix(".py")


def layer_of(module: str) -> int:
    return HIGHER.get(module, LAYERS[room_of(module)])


def is_excused(module: str, line: int) -> bool:
    """A rule may be broken where the line says why: ``# breaks: <rule>: <reason>``."""
    return "# breaks: " in (ROOT / module).read_text("utf-8").splitlines()[line - 1]


@pytest.mark.parametrize("module", [name for name in MODULES if name != "__init__.py"])
def test_a_module_imports_only_from_lower_layers_and_its_own_room(module: str) -> None:
    """Arrows point one way, and rooms of one layer do not know each other."""
    room, layer = room_of(module), layer_of(module)
    wrong = []
    for name, line in imports_of(module):
        if not name.startswith("proxy.") or is_excused(module, line):
            continue
        other = name.split(".")[1]
        other_layer = HIGHER.get("/".join(name.split(".")[1:3]) + ".py", LAYERS[other])
        if (other == room and other_layer <= layer) or layer == other_layer in (5, 7):
            continue
        if other_layer >= layer:
            wrong.append(f"proxy/{module}:{line} imports {name}")

    assert wrong == []


@pytest.mark.parametrize("module", MODULES)
def test_a_third_party_library_is_imported_in_its_one_room(module: str) -> None:
    """Replacing a library is the matter of one room."""
    wrong = []
    for name, line in imports_of(module):
        rooms = LIBRARIES.get(name.split(".")[0])
        if rooms is not None and not module.startswith(rooms) and not is_excused(module, line):
            wrong.append(f"proxy/{module}:{line} imports {name}")

    assert wrong == []


@pytest.mark.parametrize(
    "module", [name for name in MODULES if room_of(name) in NO_ASYNCIO and name not in HIGHER]
)
def test_rooms_that_decide_never_wait(module: str) -> None:
    """Formats, policies and records are pure: bytes in, decisions out."""
    waits = [
        name
        for name, line in imports_of(module)
        if name.split(".")[0] == "asyncio" and not is_excused(module, line)
    ]

    assert waits == []


def test_the_pipeline_never_sees_a_production_and_neither_sees_a_provider() -> None:
    """The two straight lines meet at the flight table alone."""
    crossings = {
        "pipeline.py": ("proxy.production", "proxy.intake", "proxy.upstream", "aiohttp"),
        "production.py": ("proxy.edge", "proxy.access", "proxy.exchange", "proxy.pipeline"),
        "intake.py": ("proxy.edge", "proxy.access", "proxy.exchange", "proxy.pipeline"),
    }
    wrong = [
        f"{module} imports {name}"
        for module, forbidden in crossings.items()
        for name, _ in imports_of(module)
        if name.startswith(forbidden)
    ]

    assert wrong == []


def test_the_flight_room_knows_only_errors_and_time() -> None:
    """A flight moves bytes and endings; what they mean is somebody else's business."""
    known = {
        name.split(".")[1]
        for module in MODULES
        if room_of(module) == "flight"
        for name, _ in imports_of(module)
        if name.startswith("proxy.")
    }

    assert known == {"flight", "errors", "clock"}


# Dialects of `providers/` -> what else they may know; `chat` is the form that OpenAI's, Mistral's and others' share.
DIALECTS: dict[str, tuple[str, ...]] = {
    "anthropic": (), "chat": (), "gemini": (), "mistral": ("chat",), "openai": ("chat",), "responses": (),
}


def test_a_dialect_knows_no_other_dialect() -> None:
    """They meet in neutral words alone, so that a new one is written without a look at the others."""
    wrong = []
    for module in MODULES:
        dialect = module.removeprefix("providers/").partition("_")[0].removesuffix(".py")
        if room_of(module) != "providers" or dialect not in DIALECTS:
            continue
        for name, line in imports_of(module):
            other = name.removeprefix("proxy.providers.").partition("_")[0]
            known = (dialect, *DIALECTS[dialect])
            if name.startswith("proxy.providers.") and other in DIALECTS and other not in known:
                wrong.append(f"proxy/{module}:{line} imports {name}")

    assert wrong == []


def test_every_room_has_a_layer() -> None:
    """A new room is placed in the law before it is used."""
    rooms = {room_of(module) for module in MODULES if module != "__init__.py"}

    assert rooms == set(LAYERS)
