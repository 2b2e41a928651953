// The page: asks for figures and the live state while somebody looks, and says what is the matter when there is
// something. One question of each kind at a time.

import { ask, token } from "./api.js";
import { FiguresView } from "./figures.js";
import { FlagsView } from "./flags.js";
import { LiveView } from "./live.js";

const FIGURES_EVERY_MS = 10000;
const LIVE_EVERY_MS = 2000;

const find = (id) => document.getElementById(id);

// What is wrong, by whom it concerns; said once, not each time it is asked again.
const troubles = new Map();

function tell(who, text, bad = true) {
  if (text) troubles.set(who, [text, bad]);
  else troubles.delete(who);
  const [said, worst] = [...troubles.values()].find(([, isBad]) => isBad) ?? [...troubles.values()][0] ?? ["", false];
  const notice = find("notice");
  if (notice.textContent !== said) notice.textContent = said;
  notice.classList.toggle("bad", Boolean(said) && worst);
}

class Poll {
  constructor(who, path, everyMs, show) {
    Object.assign(this, { who, path, everyMs, show, timer: 0, running: false });
  }

  async now() {
    clearTimeout(this.timer);
    if (this.running || document.hidden) return;
    this.running = true;
    let again = true;
    try {
      this.show(await ask(this.path));
      tell(this.who, "");
      refused(false);
    } catch (error) {
      again = this.judge(error);
    } finally {
      this.running = false;
    }
    if (again) this.timer = setTimeout(() => this.now(), this.everyMs);
  }

  // Whether to ask again by ourselves: not where a person has to act first.
  judge(error) {
    if (error.status === 401) {
      tell("access", token.read() ? "The token was refused." : "The admin token is needed to see figures.");
      refused(Boolean(token.read()));
      return false;
    }
    if (error.status === 403) {
      tell("access", error.message);
      return false;
    }
    if (error.body?.figures) this.show(error.body);
    tell(this.who, error.status ? `${error.message}${error.body?.figures ? " The figures shown are older." : ""}` : error.message);
    if (!error.status && error.code !== "no_answer") console.error(error);
    return true;
  }
}

function refused(isRefused) {
  find("token").setAttribute("aria-invalid", String(isRefused));
  if (!isRefused) tell("access", "");
}

const figures = new FiguresView(find);
const live = new LiveView(find);
const flags = new FlagsView(find, (text, bad) => tell("flags", text, bad));
const polls = [
  new Poll("figures", "dashboard/figures", FIGURES_EVERY_MS, (answer) => figures.show(answer.figures, answer.stale)),
  new Poll("live", "dashboard/live", LIVE_EVERY_MS, (answer) => live.show(answer)),
];

function refresh() {
  for (const poll of polls) poll.now();
  flags.load();
}

find("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = find("token");
  const text = field.value.trim();
  if (!text) {
    field.focus();
    return;
  }
  token.keep(text);
  field.value = "";
  field.placeholder = "a token is in use";
  troubles.clear();
  refresh();
});

find("forget").addEventListener("click", () => {
  token.forget();
  find("token").value = "";
  find("token").placeholder = "";
  troubles.clear();
  tell("token", "The token is forgotten.", false);
  setTimeout(() => tell("token", ""), 4000);
  refresh();
});

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) refresh();
});

if (token.read()) find("token").placeholder = "a token is in use";
refresh();
