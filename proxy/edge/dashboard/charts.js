// Charts of uPlot with a table of the same numbers beneath. Charts are for eyes alone; the table is for everybody.

import uPlot from "./vendor/uplot/uPlot.esm.js";
import { count, duration, hour, kindName, none, short, usd } from "./format.js";
import { element, fillTable } from "./tables.js";

const HEIGHT = 216;
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// Tiers take their colours in the order of their names, as the figures list them.
export function kindColours(kinds) {
  let tier = 0;
  return new Map(kinds.map((kind) => {
    const name = kind.startsWith("tier:") ? `tier-${tier++ % 4}` : kind;
    return [kind, name];
  }));
}

class Chart {
  constructor(place, caption) {
    this.caption = caption;
    this.plot = element("div", { class: "plot", "aria-hidden": "true" });
    this.table = element("table");
    const scroll = element("div", { class: "scroll", role: "region", "aria-label": `${caption}, as a table`, tabindex: "0" }, this.table);
    place.append(this.plot, element("details", {}, element("summary", {}, "Show as a table"), scroll));
    this.drawn = null;
    this.last = null;
    new ResizeObserver(() => this.resize()).observe(this.plot);
    document.addEventListener("theme", () => this.last && this.draw(...this.last));
  }

  resize() {
    const width = this.plot.clientWidth;
    if (this.drawn && width && width !== this.drawn.width) this.drawn.setSize({ width, height: HEIGHT });
  }

  // `series`: { title, values, colour, text }, where `stacked` ones are drawn upon each other.
  draw(at, series, { stacked = false, axis }) {
    this.last = [at, series, { stacked, axis }];
    fillTable(this.table, this.caption,
      [{ title: "Hour", text: (place) => hour(at[place]) },
        ...series.map((each) => ({ title: each.title, text: (place) => show(each, each.values[place]) }))],
      at.map((_, place) => place).reverse());
    const data = [at, ...(stacked ? pileUp(series) : series.map((each) => each.values))];
    const signature = JSON.stringify([series.map((each) => [each.title, colour(each.colour)]), colour("grid"), stacked]);
    if (this.drawn && this.signature === signature) {
      this.drawn.setData(data);
      return;
    }
    this.drawn?.destroy();
    this.signature = signature;
    this.series = series;
    this.drawn = new uPlot(this.options(series, stacked, axis), data, this.plot);
  }

  options(series, stacked, axis) {
    const lines = { stroke: colour("muted"), grid: { stroke: colour("grid"), width: 1 }, ticks: { stroke: colour("grid"), width: 1 } };
    const zone = (at) => uPlot.tzDate(new Date(at * 1e3), "Etc/UTC");
    return {
      width: this.plot.clientWidth || 320, height: HEIGHT, tzDate: zone,
      cursor: { y: false, drag: { x: false, y: false } },
      // Half an hour on either side, where the first and the last bar have theirs.
      scales: { x: { range: (_, first, last) => [first - 1800, last + 1800] }, y: { range: (_, __, most) => [0, most > 0 ? most * 1.08 : 1] } },
      axes: [
        { ...lines, space: 70, values: (_, splits) => splits.map((at) => hour(at).slice(6)) },
        { ...lines, size: (_, texts) => 22 + 7 * Math.max(3, ...(texts ?? []).map((text) => text.length)), values: (_, splits) => splits.map(axis) },
      ],
      series: [
        { value: (_, at) => (at === null ? none : hour(at)), label: "Hour" },
        ...series.map((each, place) => ({
          label: each.title, stroke: colour(each.colour), width: stacked ? 0 : 2, fill: stacked ? colour(each.colour) : undefined,
          paths: stacked ? uPlot.paths.bars({ size: [0.72, 60] }) : undefined,
          points: stacked ? { show: false } : { size: 5, fill: colour(each.colour) },
          value: (_, __, ___, index) => {
            const row = this.last?.[1][place];
            return index === null || index === undefined || !row ? none : show(row, row.values[index]);
          },
        })),
      ],
    };
  }
}

const show = (series, value) => (value === null || value === undefined ? none : series.text(value));

// The first one reaches highest and is drawn first; each of the others is drawn before it.
function pileUp(series) {
  const piled = series.map((each) => [...each.values]);
  for (let place = piled.length - 2; place >= 0; place -= 1) {
    piled[place] = piled[place].map((value, index) => value + piled[place + 1][index]);
  }
  return piled;
}

export class Charts {
  constructor(find) {
    this.calls = new Chart(find("calls-chart"), "Requests by the hour");
    this.cost = new Chart(find("cost-chart"), "Cost and savings by the hour");
    this.time = new Chart(find("time-chart"), "Time of requests by the hour");
  }

  draw(hours, colours) {
    const kinds = hours.kinds.map(({ kind, requests }) => ({
      title: kindName(kind), values: requests, colour: colours.get(kind) ?? "other", text: count,
    }));
    if (!kinds.length) kinds.push({ title: "Requests", values: hours.requests, colour: "call", text: count });
    this.calls.draw(hours.at, kinds, { stacked: true, axis: short });
    this.cost.draw(hours.at, [
      { title: "Cost", values: hours.cost_usd, colour: "tier-1", text: usd },
      { title: "Saved", values: hours.saved_usd, colour: "pattern", text: usd },
    ], { axis: usd });
    this.time.draw(hours.at, [
      { title: "95 of 100 within", values: hours.p95_ms, colour: "hit", text: duration },
      { title: "Half within", values: hours.p50_ms, colour: "joined", text: duration },
    ], { axis: duration });
  }
}
