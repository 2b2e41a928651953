"""What policies saved on a finished exchange: from what they noted while it was planned and from what the answer says
that it cost, to the account, the usage record and the counters. Nothing of it runs where no policy was on."""

from __future__ import annotations

from proxy.accounting.report import Report
from proxy.accounting.spared import SPARED_NOTHING, Spared, spare_call, spare_some
from proxy.accounting.usage import PICODOLLARS, Account
from proxy.config.catalog import Catalog
from proxy.config.prices import Price
from proxy.exchange import Exchange
from proxy.policy.shaped import Shaped
from proxy.policy.turns import read_turns
from proxy.protocol.call import Call
from proxy.telemetry.metrics import Metrics

_BYTES_PER_TOKEN = 4
_TOKENS_PER_TURN = 4  # of the marks that a chat template puts around each


def appraise(exchange: Exchange, report: Report | None, account: Account, *, payer: bool) -> Account:
    """Note on ``exchange.shaped`` what policies saved, and return the account: a rule's answer saved the tokens of
    the call that nobody made. ``payer``: the whole of the answer is on its bill, however much of it was read."""
    shaped = exchange.shaped
    assert shaped is not None
    if shaped.own:
        shaped.spared = Spared(pruning=-(account.picodollars + account.picodollars_saved))
    elif shaped.answer is not None:
        if exchange.role == "pattern":
            shaped.spared = _spare_call(exchange, shaped)
            return account._replace(tokens_saved=shaped.spared.tokens)
    elif report is not None and report.usage is not None and (shaped.tier or _was_cut(shaped)):
        shaped.spared = _spare_some(exchange, report, shaped, payer=payer)
    return account


def _was_cut(shaped: Shaped) -> bool:
    return shaped.pruned_tokens > 0 or shaped.slimmed_tokens > 0


def _spare_call(exchange: Exchange, shaped: Shaped) -> Spared:
    plan, terms, call = exchange.plan, exchange.terms, exchange.call
    if plan is None or terms is None or call is None:
        return SPARED_NOTHING
    price = find_price(terms.catalog, plan.model)
    return spare_call(count_prompt_tokens(call, plan.route.name), shaped.answer_tokens, price)


def _spare_some(exchange: Exchange, report: Report, shaped: Shaped, *, payer: bool) -> Spared:
    plan, terms, usage = exchange.plan, exchange.terms, report.usage
    if plan is None or terms is None or usage is None:
        return SPARED_NOTHING
    if report.answered_by is not None:
        price = report.price
    else:
        price = plan.routed.usual if plan.routed is not None else terms.catalog.prices.find(plan.model)
    if not payer and exchange.outcome != "ok":  # as in `accounting.usage.save`
        usage = usage._replace(output_tokens=0)
    tiered = bool(shaped.tier and shaped.baseline)
    return spare_some(
        usage,
        price,
        baseline=find_price(terms.catalog, shaped.baseline) if tiered else None,
        tiered=tiered,
        shadow=shaped.shadow,
        pruned_tokens=shaped.pruned_tokens,
        slimmed_tokens=shaped.slimmed_tokens,
    )


def find_price(catalog: Catalog, name: str) -> Price | None:
    """What the model costs that a caller would get by this name: that of its first target. A virtual model costs what
    its baseline does."""
    tiered = catalog.savings.tiers.get(name) if catalog.savings is not None else None
    name = catalog.models.resolve(tiered.baseline if tiered is not None and tiered.virtual else name)
    model = catalog.models.find(name)
    if model is None:
        return catalog.prices.find(name)
    target = model.targets[0]
    return target.price or catalog.prices.find(target.model or name) or catalog.prices.find(name)


def count_prompt_tokens(call: Call, route: str) -> int:
    """A guess, four bytes of text each, without what JSON adds."""
    turns = read_turns(call, route)
    if turns is None:
        return -(-len(call.body) // _BYTES_PER_TOKEN)
    return sum(-(-len(turn.text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN) for turn in turns.items) + (
        _TOKENS_PER_TURN * len(turns.items)
    )


def count_policies(metrics: Metrics, exchange: Exchange) -> None:
    """Add what policies did with one exchange to the counters."""
    shaped = exchange.shaped
    assert shaped is not None
    spared: Spared | None = shaped.spared
    if spared is not None:
        for name in ("pattern", "tier", "pruning", "slimming", "shadow"):
            amount: int = getattr(spared, name)
            if amount > 0:
                metrics.policy_saved_usd_total.at(name).value += amount / PICODOLLARS
            elif amount < 0:
                metrics.policy_lost_usd_total.at(name).value -= amount / PICODOLLARS
        if spared.tokens:
            metrics.policy_saved_tokens_total.at("pattern").value += spared.tokens
    if shaped.pruned_tokens > 0:
        metrics.policy_saved_tokens_total.at("pruning").value += shaped.pruned_tokens
    if shaped.slimmed_tokens > 0:
        metrics.policy_saved_tokens_total.at("slimming").value += shaped.slimmed_tokens
    if shaped.cache_class is not None and exchange.plan is not None:
        metrics.cache_class_requests_total.at(shaped.cache_class.name, _result(exchange)).value += 1


def _result(exchange: Exchange) -> str:
    """How a request of a class was answered."""
    role = exchange.role
    if role == "hit":
        return "stale" if exchange.hit_ttl_s <= 0 else "hit"
    if role == "follower":
        return "joined"
    if role in ("leader", "alone"):
        assert exchange.plan is not None
        return "miss" if exchange.plan.caching.writes else "unkept"
    return "none"
