"""The statements behind the admin page's figures: sums of requests by hour and kind, by label, by day.

All of them read a range of time over the index of ``usage.at``. $1 is since, $2 until (Unix seconds), $3 the most
rows. What a request was is its *kind*: ``pattern``, ``hit`` and ``joined`` were answered without a call of their own,
``tier:<name>`` by a call at that tier, ``call`` by any other call, ``other`` by the proxy itself.
"""

from __future__ import annotations

from typing import Final

from proxy.store.sql import Statement

_RANGE: Final = "FROM usage_requests WHERE at >= $1 AND at < $2"

_KIND: Final = (
    "CASE role WHEN 'pattern' THEN 'pattern' WHEN 'hit' THEN 'hit' WHEN 'follower' THEN 'joined'"
    " ELSE CASE WHEN called = 0 THEN 'other' WHEN tier = '' THEN 'call' ELSE 'tier:' || tier END END"
)
_HOUR: Final = {
    "postgres": "floor(at / 3600)::int8 * 3600",
    "sqlite": "CAST(at / 3600 AS INTEGER) * 3600",
}

# Column of the figures → what it is the sum of.
_SUMMED: Final = {
    "calls": "called",
    "saved_calls": "saved",
    "errors": "failed",
    "refused": "refused",
    "estimated": "guessed",
    "tokens": "input_tokens + output_tokens",
    "upstream_tokens": "upstream_tokens",
    "pruned_tokens": "pruned_tokens",
    "billed_picodollars": "cost_picodollars",
    "upstream_picodollars": "upstream_picodollars",
    "saved_picodollars": "saved_picodollars",
    "policy_saved_picodollars": "policy_saved_picodollars",
    "shadow_saved_picodollars": "shadow_saved_picodollars",
}
_SUMS: Final = {
    "postgres": ", ".join(f"sum({of}) AS {name}" for name, of in _SUMMED.items()),
    # SQLite's sum fails beyond 64 bits. Its total is a float: exact up to nine thousand dollars, and then to sixteen
    # digits.
    "sqlite": ", ".join(f"total({of}) AS {name}" for name, of in _SUMMED.items()),
}


def _sums(name: str, label: str | dict[str, str], order: str, more: str = "") -> Statement:
    """Sums for each label; ``more`` are further columns to tell rows apart."""
    texts = {}
    for kind, sums in _SUMS.items():
        text = label if isinstance(label, str) else label[kind]
        further, groups = (f", {more}", "1, 2") if more else ("", "1")
        texts[kind] = (
            f"SELECT {text} AS label{further}, count(*) AS requests, {sums}, sum(total_ms) AS sum_ms {_RANGE}"
            f" GROUP BY {groups} ORDER BY {order} LIMIT $3"
        )
    return Statement(f"figures_{name}", texts["postgres"], texts["sqlite"], ("usage_at",))


def _percentiles(name: str, label: dict[str, str]) -> Statement:
    """How long requests took, for each label."""
    postgres = (
        f"SELECT {label['postgres']} AS label, count(*) AS requests,"
        " percentile_disc(0.5) WITHIN GROUP (ORDER BY total_ms) AS p50_ms,"
        " percentile_disc(0.95) WITHIN GROUP (ORDER BY total_ms) AS p95_ms"
        f" {_RANGE} GROUP BY 1 ORDER BY 1 LIMIT $3"
    )
    # The first value with the wanted share of its group up to it, as ``percentile_disc`` picks it.
    picked = ", ".join(
        f"max(CASE WHEN place = (requests * {per_cent} + 99) / 100 THEN total_ms END) AS p{per_cent}_ms"
        for per_cent in (50, 95)
    )
    group = f"PARTITION BY {label['sqlite']}"
    placed = (
        f"SELECT {label['sqlite']} AS label, total_ms, row_number() OVER ({group} ORDER BY total_ms) AS place,"
        f" count(*) OVER ({group}) AS requests {_RANGE}"
    )
    sqlite = f"SELECT label, requests, {picked} FROM ({placed}) AS placed GROUP BY 1, 2 ORDER BY 1 LIMIT $3"
    return Statement(f"figures_{name}", postgres, sqlite, ("usage_at",))


_DEAREST: Final = "upstream_picodollars DESC, requests DESC, label"
FIGURES: Final[dict[str, Statement]] = {
    "hour": _sums("hour", _HOUR, "1, 2", f"{_KIND} AS kind"),
    "times": _percentiles("times", _HOUR),
    "time": _percentiles("time", dict.fromkeys(_HOUR, "'all'")),
    "day": _sums("day", "day", "label"),
    "all": _sums("all", "'all'", "label"),
    "key": _sums("key", "key_id", _DEAREST),
    "model": _sums("model", "model", _DEAREST),
    "provider": _sums("provider", "provider", _DEAREST),
    "outcome": _sums(
        "outcome", "outcome", "errors DESC, refused DESC, requests DESC, label", "status"
    ),
}
"""What the figures are by → its statement. ``hour`` has the further column ``kind``, ``outcome`` has ``status``."""
