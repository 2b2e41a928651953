// Numbers as people read them.

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 1 });

export const none = "–";

export const count = (value) => whole.format(value);

export const short = (value) => (Math.abs(value) < 10000 ? whole.format(value) : compact.format(value));

export function percent(share, places = 1) {
  return `${(share * 100).toFixed(places)} %`;
}

// Cents; of less than a dollar tenths of them; of less than a cent three digits that mean something.
export function usd(value) {
  const size = Math.abs(value);
  const sign = value < 0 ? "−" : "";
  const places = size >= 1 || size === 0 ? 2 : 3;
  const digits = size === 0 || size >= 0.01
    ? { minimumFractionDigits: places, maximumFractionDigits: places }
    : { maximumSignificantDigits: 3, maximumFractionDigits: 12 };
  return `${sign}$${size.toLocaleString("en-US", digits)}`;
}

export function duration(ms) {
  if (ms === null || ms === undefined) return none;
  if (ms >= 10000) return `${(ms / 1000).toFixed(1)} s`;
  if (ms >= 1000) return `${(ms / 1000).toFixed(2)} s`;
  return ms >= 10 ? `${ms.toFixed(0)} ms` : `${ms.toFixed(2)} ms`;
}

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  for (; value >= 1024 && place < units.length - 1; place += 1) value /= 1024;
  return `${place ? value.toFixed(1) : value} ${units[place]}`;
}

export function change(part) {
  if (part === null || part === undefined) return none;
  const sign = part > 0 ? "+" : part < 0 ? "−" : "±";
  return `${sign}${(Math.abs(part) * 100).toFixed(0)} %`;
}

const iso = (at) => new Date(at * 1000).toISOString();
export const time = (at) => iso(at).slice(11, 19);
export const hour = (at) => iso(at).slice(5, 16).replace("T", " ");

const names = {
  pattern: "Pattern", hit: "Cache hit", joined: "Joined a flight", call: "Other call", other: "Proxy itself",
};

// A tier's name is the configuration's.
export const kindName = (kind) => (kind.startsWith("tier:") ? `Tier ${kind.slice(5)}` : names[kind] ?? kind);
