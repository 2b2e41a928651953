// Flags with their switches: one for everybody, and one for each rule about a tenant, a route or a key. A change is in
// force in every process within a second; the last one can be taken back.

import { ask, token } from "./api.js";
import { element, fillTable } from "./tables.js";

const PATH = "admin/flags";
const EVERY_MS = 10000;
const groups = { tenant: "tenants", route: "routes", key: "keys" };
const isOn = (value) => value !== "off";

export class FlagsView {
  constructor(find, tell) {
    Object.assign(this, { find, tell, timer: 0, busy: false });
    this.note = find("flags-note");
    this.undo = element("button", { type: "button", id: "undo-flags", hidden: true }, "Take the last change back");
    this.undo.addEventListener("click", () => this.change(() => ask(`${PATH}/rollback`, { method: "POST", body: { why: "dashboard" } })));
    this.note.after(this.undo);
    this.clear();
  }

  clear() {
    this.undo.hidden = true;
    fillTable(this.find("flags"), "Flags", [{ title: "Flag", text: () => "" }], [], "The admin token opens them");
  }

  async load() {
    clearTimeout(this.timer);
    if (!token.read()) {
      this.clear();
      return;
    }
    if (this.busy || document.hidden) return;
    try {
      await this.read();
      this.timer = setTimeout(() => this.load(), EVERY_MS);
    } catch (error) {
      this.refuse(error);
    }
  }

  async read() {
    const [{ flags }, { changes }] = await Promise.all([ask(PATH), ask(`${PATH}/audit?limit=1`)]);
    this.show(flags, changes[0]);
    this.tell("");
  }

  show(flags, last) {
    const rows = flags.flatMap((flag) => {
      const own = flag.rules.find((rule) => rule.scope === "global");
      const everybody = { flag, scope: "global", subject: "", value: flag.value, origin: own?.origin ?? "default" };
      return [everybody, ...flag.rules.filter((rule) => rule.scope !== "global").map((rule) => ({ flag, ...rule }))];
    });
    const focused = document.activeElement?.dataset?.rule;
    fillTable(this.find("flags"), "Flags and their switches", [
      { title: "Flag", text: (row) => (row.scope === "global" ? row.flag.name : `${row.flag.name}, ${row.scope} ${row.subject}`) },
      { title: "On", left: true, text: (row) => this.makeSwitch(row) },
      { title: "For", left: true, text: (row) => (row.value === "on" ? "all" : row.value === "off" ? "nobody" : row.value) },
      { title: "Set in", left: true, text: (row) => (row.flag.configured ? row.origin : "not configured"), mark: () => "muted" },
    ], rows);
    if (focused) [...this.find("flags").querySelectorAll("input")].find((each) => each.dataset.rule === focused)?.focus();
    this.note.textContent = last ? `Last change: ${last.who}, ${last.at.slice(0, 19).replace("T", " ")} UTC` : "Nobody has changed a flag yet.";
    this.undo.hidden = !last;
  }

  makeSwitch(row) {
    const name = row.scope === "global" ? row.flag.name : `${row.flag.name} for ${row.scope} ${row.subject}`;
    const made = element("input", { type: "checkbox", role: "switch", class: "switch", "aria-label": name, "data-rule": `${row.flag.name} ${row.scope} ${row.subject}` });
    made.checked = row.flag.configured && isOn(row.value);
    if (!row.flag.configured) {
      // A flag turns nothing on that the catalog does not configure.
      made.disabled = true;
      made.title = "The catalog configures nothing that this could switch";
    }
    made.addEventListener("change", () => {
      const value = made.checked ? "on" : "off";
      const rule = row.scope === "global" ? { global: value } : { [groups[row.scope]]: { [row.subject]: value } };
      this.change(() => ask(PATH, { method: "PATCH", body: { flags: { [row.flag.name]: rule }, why: "dashboard" } }));
    });
    return made;
  }

  // One change at a time; what is shown afterwards is what the proxy says.
  async change(act) {
    if (this.busy) return;
    this.busy = true;
    for (const each of this.find("flags").querySelectorAll("input")) each.setAttribute("aria-disabled", "true");
    try {
      await act();
      await this.read();
    } catch (error) {
      await this.read().catch(() => {});
      this.refuse(error);
    } finally {
      this.busy = false;
    }
  }

  refuse(error) {
    if (error.status === 401 || error.status === 404) {
      this.clear();
      this.note.textContent = error.status === 404 ? error.message : "The token was refused.";
      return;
    }
    this.tell(`Flags: ${error.message}`);
    if (!error.status && error.code !== "no_answer") console.error(error);
  }
}
