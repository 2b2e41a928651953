"""Proxies and databases that are killed under load: no usage row is lost and none is doubled.

Each long test kills twenty-five proxies; with its seeds they are a hundred over each database.
"""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

import pytest

from tests.fakes.databases import PostgresServer
from tests.scenes.kill_field import Field, in_thread, killing_field


async def slaughter(field: Field, kills: int, chance: random.Random, most: int = 60) -> None:
    """Start, load, kill at a random moment; then let the last one live."""
    for _ in range(kills):
        await field.start()
        await field.answered(chance.randrange(most))
        await field.kill()
    await field.start()
    await field.answered(most)


@pytest.mark.long
async def test_a_killed_proxy_loses_no_row_and_doubles_none(database_url: str, tmp_path: Path) -> None:
    """On each database: whatever answer was read to its end is paid once, and the budget has no hole."""
    async with killing_field(tmp_path, database_url) as field:
        field.load(4)
        await slaughter(field, 1, random.Random(1), most=20)
        await field.unload()
        await field.settle()
        print("\n", await field.audit())


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", range(4))
async def test_proxies_killed_again_and_again_lose_no_row_and_double_none(
    database_url: str, tmp_path: Path, seed: int
) -> None:
    """A hundred SIGKILLs on each database, at random moments under load."""
    async with killing_field(tmp_path, database_url) as field:
        field.load(8)
        await slaughter(field, 25, random.Random(seed))
        await field.unload()
        await field.settle()
        print("\n", await field.audit())


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", range(2))
async def test_a_database_killed_again_and_again_loses_no_row(
    private_postgres: PostgresServer, tmp_path: Path, seed: int
) -> None:
    """PostgreSQL dies six times, of a crash or of SIGKILL, and so does the proxy now and then, before it is back."""
    chance = random.Random(100 + seed)
    async with killing_field(tmp_path, private_postgres.create_database()) as field:
        await field.start()
        field.load(8)
        for at in range(6):
            await field.answered(chance.randrange(20, 200))
            how = chance.choice((signal.SIGQUIT, signal.SIGKILL, signal.SIGINT))
            restart = asyncio.create_task(in_thread(lambda how=how: private_postgres.restart(how)))
            if at % 2:
                await field.kill()
                await field.start()
            await restart
        await field.answered(100)
        await field.unload()
        await field.settle()
        print("\n", await field.audit())
