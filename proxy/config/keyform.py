"""What an operator may say about a key or an allowance, checked: the same for the command line and the admin API.

A form is a mapping in the words of the admin API; what it leaves out stays as it is. `key_fields` and `allowance_of`
turn it into fields of records, `describe_key` and `describe_allowance` turn records back, without digests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from proxy.config.keys import MAX_BUDGET_PICODOLLARS, PERIODS, Allowance, Budget, KeyRecord, Limits
from proxy.config.schema import ROUTE_NAMES
from proxy.config.values import did_you_mean

MAX_NAME_CHARS: Final = 200
MAX_ITEMS: Final = 100
MAX_LIMIT: Final = 10**12
_PICODOLLARS: Final = 10**12
_AGE: Final = re.compile(r"([0-9]{1,6})\s*([mhdwy])")
_UNITS_S: Final = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800, "y": 31_536_000}
_LATEST: Final = 253_402_300_799.0  # the year 9999


class LimitsForm(Struct, forbid_unknown_fields=True):
    requests_per_minute: int | UnsetType = UNSET
    tokens_per_minute: int | UnsetType = UNSET
    concurrent: int | UnsetType = UNSET


class BudgetForm(Struct, forbid_unknown_fields=True):
    usd: str | float
    period: str = "month"


class KeyForm(Struct, forbid_unknown_fields=True):
    """``expires`` and ``budget`` are ``null`` for none."""

    name: str | UnsetType = UNSET
    tenant: str | UnsetType = UNSET
    team: str | UnsetType = UNSET
    models: list[str] | UnsetType = UNSET
    routes: list[str] | UnsetType = UNSET
    limits: LimitsForm | UnsetType = UNSET
    budget: BudgetForm | str | UnsetType | None = UNSET
    scope: Literal["key", "team", "tenant"] | UnsetType = UNSET
    cache: Literal["default", "off"] | UnsetType = UNSET
    charge: Literal["first", "split", "each"] | UnsetType = UNSET
    expires: str | float | UnsetType | None = UNSET
    tags: list[str] | UnsetType = UNSET


class AllowanceForm(Struct, forbid_unknown_fields=True):
    kind: Literal["team", "tenant"]
    name: str
    limits: LimitsForm | UnsetType = UNSET
    budget: BudgetForm | str | UnsetType | None = UNSET


class FormError(ValueError):
    """A form that cannot be taken; the text says what is wrong with it."""


def key_fields(form: Mapping[str, Any], base: KeyRecord, now_wall: float) -> dict[str, Any]:
    """The fields of ``base`` that the form changes, with their new values. Raises ``FormError``."""
    given = _convert(form, KeyForm)
    fields: dict[str, Any] = {}
    for name, parse in _PARSERS.items():
        value = getattr(given, name)
        if value is not UNSET:
            fields[name] = parse(name, value)
    if given.limits is not UNSET:
        fields["limits"] = _limits(given.limits, base.limits)
    if given.budget is not UNSET:
        fields["budget"] = parse_budget(given.budget)
    if given.expires is not UNSET:
        fields["expires_at"] = parse_expiry(given.expires, now_wall)
    record = msgspec.structs.replace(base, **fields)
    if not record.name:
        raise FormError("name: a key has a name")
    if record.scope == "team" and not record.team:
        raise FormError("scope: to share within a team, the key must be of a team")
    return fields


def allowance_of(form: Mapping[str, Any], known: Mapping[tuple[str, str], Allowance]) -> Allowance:
    """The allowance that the form asks for, beginning with the one of ``known``. Raises ``FormError``."""
    given = _convert(form, AllowanceForm)
    tenant, slash, team = given.name.partition("/")
    if (given.kind == "team") != bool(slash):
        raise FormError("name: a tenant's name, or tenant/team for a team (/team where there are no tenants)")
    _word("name", tenant)
    _word("name", team)
    if given.kind == "team" and not team:
        raise FormError("name: a team has a name")
    base = known.get((given.kind, given.name), Allowance(given.kind, given.name))
    limits = base.limits if given.limits is UNSET else _limits(given.limits, base.limits)
    budget = base.budget if given.budget is UNSET else parse_budget(given.budget)
    return Allowance(given.kind, given.name, limits, budget)


def parse_budget(value: BudgetForm | str | None) -> Budget | None:
    """``{"usd": 25, "period": "month"}``, ``"25/month"``, ``"none"`` or ``None``. Raises ``FormError``."""
    if value is None or value in ("none", ""):
        return None
    if isinstance(value, str):
        usd, _, period = value.partition("/")
        value = BudgetForm(usd.strip().removeprefix("$"), period.strip() or "month")
    if value.period not in PERIODS:
        raise FormError(f"budget: the period is one of {', '.join(PERIODS)}" + did_you_mean(value.period, PERIODS))
    try:
        picodollars = Decimal(str(value.usd)) * _PICODOLLARS
    except InvalidOperation:
        picodollars = Decimal("nan")
    if not picodollars.is_finite() or not 0 <= picodollars <= MAX_BUDGET_PICODOLLARS:
        most = MAX_BUDGET_PICODOLLARS // _PICODOLLARS
        raise FormError(f"budget: an amount of dollars from 0 to {most}, such as 25/month")
    return Budget(int(picodollars), value.period)


def parse_expiry(value: str | float | None, now_wall: float) -> float:
    """Unix seconds, 0 for never: of an age (``30d``), a date (UTC) or Unix seconds. Raises ``FormError``."""
    if value is None or value in ("never", ""):
        return 0.0
    at = _moment(value, now_wall)
    if not now_wall < at <= _LATEST:
        raise FormError("expires: a time to come, such as 12h, 30d, 2027-01-31 or 2027-01-31T12:00:00Z, or never")
    return at


def parse_age_s(text: str) -> float:
    """Seconds of ``45m``, ``12h``, ``30d``, ``2w``, ``1y``, or ``0``. Raises ``FormError``."""
    if text.strip() == "0":
        return 0.0
    match = _AGE.fullmatch(text.strip().lower())
    if match is None:
        raise FormError("a time such as 45m, 12h, 30d, 2w or 1y")
    return float(int(match[1]) * _UNITS_S[match[2]])


def _moment(value: str | float, now_wall: float) -> float:
    """Negative for what cannot be read."""
    if not isinstance(value, str):
        return value
    if _AGE.fullmatch(value.strip().lower()):
        return now_wall + parse_age_s(value)
    try:
        moment = datetime.fromisoformat(value.strip())
    except ValueError:
        return -1.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _convert(form: Mapping[str, Any], kind: type[Any]) -> Any:
    try:
        return msgspec.convert(form, kind, strict=True)
    except msgspec.ValidationError as error:
        raise FormError(str(error)) from None


def _limits(form: LimitsForm, base: Limits) -> Limits:
    values = {name: getattr(form, name) for name in Limits.__struct_fields__ if getattr(form, name) is not UNSET}
    for name, value in values.items():
        if not 0 <= value <= MAX_LIMIT:
            raise FormError(f"limits: {name} is from 0 (no limit) to {MAX_LIMIT}")
    return msgspec.structs.replace(base, **values)


def _name(field: str, text: str) -> str:
    text = text.strip()
    if not text or len(text) > MAX_NAME_CHARS or not text.isprintable():
        raise FormError(f"{field}: 1 to {MAX_NAME_CHARS} printable characters")
    return text


def _word(field: str, text: str) -> str:
    """Of a tenant or a team: a slash joins the two, so neither has one."""
    text = text.strip()
    if text and ("/" in _name(field, text)):
        raise FormError(f"{field}: without a slash")
    return text


def _one_of(_field: str, value: str) -> str:
    return value


def _items(field: str, values: list[str]) -> tuple[str, ...]:
    if len(values) > MAX_ITEMS:
        raise FormError(f"{field}: at most {MAX_ITEMS}")
    return tuple(dict.fromkeys(_name(field, value) for value in values))


def _models(field: str, values: list[str]) -> tuple[str, ...]:
    models = _items(field, values)
    for model in models:
        if "*" in model[:-1]:
            raise FormError(f"{field}: a star stands at the end, for every name that begins so")
    return models


def _routes(field: str, values: list[str]) -> tuple[str, ...]:
    routes = _items(field, values)
    for route in routes:
        if route not in ROUTE_NAMES:
            raise FormError(f"{field}: there is no route '{route}'" + did_you_mean(route, sorted(ROUTE_NAMES)))
    return routes


_PARSERS: Final[dict[str, Any]] = {
    "name": _name,
    "tenant": _word,
    "team": _word,
    "models": _models,
    "routes": _routes,
    "scope": _one_of,
    "cache": _one_of,
    "charge": _one_of,
    "tags": _items,
}


def describe_key(record: KeyRecord, now_wall: float) -> dict[str, Any]:
    """A record for people and programs; nothing in it helps to make the key."""
    return {
        "id": record.id,
        "name": record.name,
        "state": state_of(record, now_wall),
        "tenant": record.tenant,
        "team": record.team,
        "models": list(record.models),
        "routes": list(record.routes),
        "limits": msgspec.structs.asdict(record.limits),
        "budget": _describe_budget(record.budget),
        "scope": record.scope,
        "cache": record.cache,
        "charge": record.charge,
        "expires": _iso(record.expires_at),
        "tags": list(record.tags),
        "created": _iso(record.created_at),
        "revoked": _iso(record.revoked_at),
        "version": record.version,
    }


def describe_allowance(allowance: Allowance) -> dict[str, Any]:
    """The same for an allowance."""
    return {
        "kind": allowance.kind,
        "name": allowance.name,
        "limits": msgspec.structs.asdict(allowance.limits),
        "budget": _describe_budget(allowance.budget),
        "version": allowance.version,
    }


def state_of(record: KeyRecord, now_wall: float) -> str:
    """``valid``, ``expired`` or ``revoked``."""
    if record.revoked_at:
        return "revoked"
    return "expired" if record.expires_at and now_wall >= record.expires_at else "valid"


def usd_text(picodollars: int) -> str:
    """Dollars without rounding: ``25``, ``0.5``."""
    text = f"{Decimal(picodollars) / _PICODOLLARS:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _describe_budget(budget: Budget | None) -> dict[str, str] | None:
    return None if budget is None else {"usd": usd_text(budget.picodollars), "period": budget.period}


def _iso(wall: float) -> str | None:
    if not wall:
        return None
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=wall)).isoformat(timespec="seconds")
