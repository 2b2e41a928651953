// What happens right now: flights, requests, the hot cache, the health of targets.

import { bytes, count, duration, none, percent, time } from "./format.js";
import { fillCards, fillTable } from "./tables.js";

const states = { closed: ["healthy", "good"], half_open: ["on trial", ""], open: ["ejected", "bad"] };

export class LiveView {
  constructor(find) {
    this.find = find;
    fillCards(find("live-cards"), ["Flights", "Callers on them", "Requests", "Hot cache", "Records to write"].map((name) => [name, none]));
  }

  show(live) {
    const { flights, requests, hot_cache: hot, usage } = live;
    const asked = hot.hits + hot.misses;
    this.find("live-at").textContent = `${time(live.at)} UTC${workers(live)}`;
    fillCards(this.find("live-cards"), [
      ["Flights", count(flights.in_air), `${count(flights.started)} since the start`],
      ["Callers on them", count(flights.subscribers), `${count(flights.joins)} joined since the start`],
      ["Requests", count(requests.running), `${count(requests.connections)} connections`],
      ["Hot cache", bytes(hot.size_bytes), `${count(hot.entries)} answers, ${asked ? percent(hot.hits / asked, 0) : none} hits`],
      ["Records to write", count(usage.pending), "not in the database yet"],
    ]);
    fillTable(this.find("health"), "Health of targets", [
      { title: "Target", text: (row) => row.target },
      { title: "State", left: true, text: (row) => states[row.state]?.[0] ?? row.state, mark: (row) => states[row.state]?.[1] },
      { title: "In flight", text: (row) => count(row.in_flight) },
      { title: "Queued", text: (row) => count(row.queued) },
      { title: "First byte", text: (row) => duration(row.first_byte_ms) },
      { title: "95 of 100", text: (row) => duration(row.p95_first_byte_ms) },
      { title: "Failed in 10 s", text: (row) => count(row.failed_10s), mark: (row) => row.failed_10s && "bad" },
    ], live.targets, "The catalog names no targets; requests go where their path says");
    fillTable(this.find("flights"), "The oldest flights", [
      { title: "Flight", text: (row) => (row.worker === undefined ? String(row.flight) : `${row.worker}:${row.flight}`) },
      { title: "State", left: true, text: (row) => String(row.state) },
      { title: "Age", text: (row) => duration(row.age_s * 1000) },
      { title: "Callers", text: (row) => count(row.subscribers) },
      { title: "Bytes", text: (row) => bytes(row.bytes) },
    ], flights.oldest, "Nothing is in the air");
  }
}

function workers(live) {
  if (!live.workers) return "";
  const silent = Object.entries(live.workers).filter(([, why]) => why);
  const said = `, ${Object.keys(live.workers).length} workers`;
  return silent.length ? `${said}, no answer from ${silent.map(([name]) => name).join(", ")}` : said;
}
