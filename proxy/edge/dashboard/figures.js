// The figures of the store: today, the month, the hours, who and what.

import { Charts, kindColours } from "./charts.js";
import { change, count, duration, kindName, none, percent, short, time, usd } from "./format.js";
import { element, fillCards, fillTable } from "./tables.js";

const goals = {
  error_rate: ["Error rate", percent], hit_rate: ["Answered without a call", percent],
  p95_ms: ["95 of 100 answered within", duration], usd_per_1000: ["Cost of 1,000 requests", usd],
};

const blank = {
  requests: 0, calls: 0, saved_calls: 0, errors: 0, refused: 0, cost_usd: 0, saved_usd: 0, shared_usd: 0, policy_usd: 0,
  shadow_usd: 0, hit_rate: 0, error_rate: 0, mean_ms: 0, p95_ms: 0,
};

export class FiguresView {
  constructor(find) {
    this.find = find;
    this.charts = null;
    this.showToday(blank, [], true);
  }

  show(figures, stale) {
    const { today, kinds, before, month, hours, by } = figures;
    const find = this.find;
    const colours = kindColours(kinds.map((each) => each.kind));
    find("as-of").textContent = `As of ${time(figures.as_of)} UTC, ${figures.day}${stale ? " – not up to date" : ""}`;
    document.body.classList.toggle("stale", stale);
    this.showToday(today, figures.targets);
    this.showKinds(kinds, colours);
    fillTable(find("goals"), "Targets beside today's figures", [
      { title: "Target", text: (row) => goals[row.name][0] },
      { title: "Wanted", text: (row) => `${row.at_least ? "≥" : "≤"} ${goals[row.name][1](row.target)}` },
      { title: "Today", text: (row) => (row.met === null ? none : goals[row.name][1](row.actual)) },
      { title: "", left: true, text: (row) => (row.met === null ? "nothing to judge" : row.met ? "✓ met" : "✗ missed"),
        mark: (row) => (row.met === null ? "muted" : row.met ? "good" : "bad") },
    ], figures.targets, "No targets are set");
    this.showMoney(today, before, month);
    this.charts ??= new Charts(find);
    this.charts.draw(hours, colours);
    this.showBy(by);
    fillTable(find("errors"), "Requests that failed or were refused today", [
      { title: "Outcome", text: (row) => row.label || none },
      { title: "Status", text: (row) => String(row.status || none) },
      { title: "Requests", text: (row) => count(row.requests) },
      { title: "", left: true, text: (row) => (row.errors ? "failed" : "refused"), mark: (row) => (row.errors ? "bad" : "muted") },
    ], figures.errors, "None");
  }

  showToday(today, targets, empty = false) {
    const met = Object.fromEntries(targets.map((target) => [target.name, target.met]));
    const mark = (name) => (met[name] === false ? "bad" : "");
    const or = (text) => (empty ? none : text);
    fillCards(this.find("cards"), [
      ["Requests", or(count(today.requests)), or(`${count(today.calls)} calls upstream`)],
      ["Answered without a call", or(percent(today.hit_rate)), or(`${count(today.saved_calls)} calls saved`), mark("hit_rate")],
      ["Time, mean", or(duration(today.mean_ms)), or(`95 of 100 within ${duration(today.p95_ms)}`), mark("p95_ms")],
      ["Cost", or(usd(today.cost_usd)), or(`${usd(today.usd_per_1000 ?? 0)} for 1,000 requests`), mark("usd_per_1000")],
      ["Saved", or(usd(today.saved_usd)), or(`${usd(today.shared_usd)} by sharing, ${usd(today.policy_usd)} by policies`)],
      ["Errors", or(percent(today.error_rate, 2)), or(`${count(today.errors)} failed, ${count(today.refused)} refused`), mark("error_rate")],
    ]);
  }

  showKinds(kinds, colours) {
    const dyed = (kind, tag) => {
      const span = element("span", { class: tag });
      span.style.background = `var(--${colours.get(kind)})`;
      return span;
    };
    this.find("shares").replaceChildren(...kinds.filter((row) => row.requests).map((row) => {
      const span = dyed(row.kind, "share");
      span.style.flexGrow = row.requests;
      return span;
    }));
    fillTable(this.find("kinds"), "Requests of today by how they were answered", [
      { title: "Answered by", text: (row) => element("span", {}, dyed(row.kind, "swatch"), kindName(row.kind)) },
      { title: "Requests", text: (row) => count(row.requests) },
      { title: "Share", text: (row) => percent(row.share) },
      { title: "Cost", text: (row) => usd(row.cost_usd) },
    ], kinds);
  }

  showMoney(today, before, month) {
    const then = (name) => ({ usd: before[name].cost_usd, change: before[name].changes.cost_usd });
    const pace = month.pace_days ? `by the pace of ${month.pace_days} full day${month.pace_days > 1 ? "s" : ""}` : "by today's pace";
    fillTable(this.find("money"), "Cost of today, of the month, and before", [
      { title: "", text: (row) => row.title },
      { title: "US dollars", text: (row) => usd(row.usd) },
      { title: "Today against it", text: (row) => row.change ?? "" },
    ], [
      { title: "Today", usd: today.cost_usd },
      { title: "Yesterday by this time", ...then("yesterday"), change: change(then("yesterday").change) },
      { title: "A week ago by this time", ...then("last_week"), change: change(then("last_week").change) },
      { title: `${month.month} so far`, usd: month.so_far_usd },
      { title: `${month.month} in the end, ${pace}`, usd: month.projected_usd },
      { title: "Saved today", usd: today.saved_usd },
      ...(today.shadow_usd ? [{ title: "Tiers in shadow mode would save today", usd: today.shadow_usd }] : []),
    ]);
  }

  showBy(by) {
    const columns = [
      { title: "Requests", text: (row) => short(row.requests) },
      { title: "Calls", text: (row) => short(row.calls) },
      { title: "Without a call", text: (row) => percent(row.hit_rate) },
      { title: "Cost", text: (row) => usd(row.cost_usd) },
      { title: "Saved", text: (row) => usd(row.saved_usd) },
      { title: "Mean time", text: (row) => duration(row.mean_ms) },
      { title: "Errors", text: (row) => count(row.errors), mark: (row) => row.errors && "bad" },
    ];
    const name = (title) => ({ title, text: (row) => row.label || none });
    fillTable(this.find("by-model"), "Today by model", [name("Model"), ...columns], by.model);
    fillTable(this.find("by-provider"), "Today by provider", [name("Provider"), ...columns], by.provider);
    const billed = { title: "Billed", text: (row) => usd(row.billed_usd) };
    const key = { title: "Key", text: (row) => (row.name ? `${row.name} (${row.label})` : row.label || none) };
    fillTable(this.find("by-key"), "Today by key", [key, ...columns.slice(0, 3), billed, ...columns.slice(3)], by.key);
  }
}
