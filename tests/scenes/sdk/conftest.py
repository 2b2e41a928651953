"""Fixtures of the SDK scenes: both sides, fresh for each scene, and the two kinds of client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trustme

from tests.scenes.sdk.sides import Sides

BLOCKING = "blocking"
ASYNCHRONOUS = "asynchronous"


@pytest.fixture(autouse=True, scope="session")
def _few_authorities(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No scene speaks TLS, but every client and every proxy loads the authorities it would trust; with the system's
    that would be most of the work done here."""
    path = tmp_path_factory.mktemp("authorities") / "one.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(path))
        patch.setenv("SSL_CERT_DIR", str(path.parent))
        yield


@pytest.fixture
def sides() -> Iterator[Sides]:
    """A direct upstream and a proxied one, both untouched."""
    with Sides() as sides:
        yield sides


@pytest.fixture
def unhurried_sides() -> Iterator[Sides]:
    """The same with a proxy that leaves it to the caller's SDK to end its wait."""
    with Sides(heed_patience=False) as sides:
        yield sides


@pytest.fixture(params=[BLOCKING, ASYNCHRONOUS])
def kind(request: pytest.FixtureRequest) -> str:
    """Which of an SDK's two clients runs the program."""
    return str(request.param)
