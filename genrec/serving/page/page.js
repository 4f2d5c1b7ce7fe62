// The page of the server. All that it shows comes as text: nothing of an answer is ever read as HTML.

const SHOWN = 8; // titles of a search
const FIELDS = { k: "Items wanted", beams: "Beams" };
let token = null; // in memory alone
let asking = null; // the one dialog that asks for it

const byId = (id) => document.getElementById(id);
const parts = (id) => byId(id).content.cloneNode(true);
const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const same = (one, other) => one.length === other.length && one.every((token, place) => token === other[place]);

function made(tag, kind = "", text = "") {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  element.textContent = text;
  return element;
}

function told(element, text) {
  element.textContent = text;
  element.hidden = !text;
}

function bar(share) {
  const outer = made("div", "bar");
  outer.setAttribute("aria-hidden", "true");
  outer.append(made("span"));
  outer.firstChild.style.width = `${100 * Math.min(share, 1)}%`;
  return outer;
}

function probability(score) {
  const value = Math.exp(score);
  return value >= 0.001 ? value.toFixed(4) : value.toExponential(1);
}

// ---------------------------------------------------------------- the server

class Refused extends Error {}

function askToken(wrong) {
  asking ??= new Promise((resolve) => {
    const dialog = byId("token-dialog");
    byId("token-error").textContent = wrong ? "The server does not take this token." : "";
    byId("token").value = "";
    dialog.addEventListener("close", () => {
      token = byId("token").value.trim() || null;
      byId("token").value = "";
      asking = null;
      resolve(token !== null);
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

// Returns the answer; throws Refused with words for people, or AbortError where a later request took its place.
async function call(path, body, signal) {
  const sent = token;
  const options = { signal, headers: {} };
  if (sent) options.headers.Authorization = `Bearer ${sent}`;
  if (body) {
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
    options.headers["Content-Type"] = "application/json";
  }
  let response, answer;
  try {
    response = await fetch(path, options);
    answer = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(response ? `The server answered ${response.status} without words.` : "The server does not answer.");
  }
  if (response.status === 401) {
    const given = token !== sent || (await askToken(sent !== null));
    signal?.throwIfAborted();
    if (given) return call(path, body, signal);
  }
  if (!response.ok) {
    const wait = response.headers.get("Retry-After");
    const said = (answer.error?.message ?? `The server answered ${response.status}.`)
      .replace(/\bbody\.(k|beams)\b/g, (_, field) => FIELDS[field]); // as the page calls them
    throw new Refused(wait ? `${said} Try again in ${wait} s.` : said);
  }
  return answer;
}

// ---------------------------------------------------------------- search and choose

class Picker {
  constructor(root, changed) {
    this.items = [];
    this.options = [];
    this.active = -1;
    this.changed = changed;
    this.name = root.querySelector("h2, h3").textContent;
    root.append(parts("picker-parts"));
    this.input = root.querySelector("input");
    this.popup = root.querySelector(".popup");
    this.list = root.querySelector("[role=listbox]");
    this.found = root.querySelector(".found");
    this.chosen = root.querySelector(".chosen");
    this.list.id = `${root.dataset.name}-found`;
    this.input.id = `${root.dataset.name}-search`;
    this.input.setAttribute("aria-label", `${this.name}: search titles`);
    this.input.setAttribute("aria-controls", this.list.id);
    this.list.setAttribute("aria-label", `${this.name}: titles found`);
    this.chosen.setAttribute("aria-label", `${this.name}: chosen`);
    this.input.addEventListener("input", () => this.searchSoon());
    this.input.addEventListener("keydown", (event) => this.key(event));
    // The question for a token takes the focus, and the search goes on behind it.
    this.input.addEventListener("blur", () => byId("token-dialog").open || this.close());
    this.popup.addEventListener("mousedown", (event) => event.preventDefault()); // the input keeps the focus
    this.list.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.choose([...this.list.children].indexOf(option));
    });
  }

  searchSoon() {
    clearTimeout(this.timer);
    this.search?.abort();
    if (!this.input.value.trim()) return this.close();
    this.timer = setTimeout(() => this.find(), 150);
  }

  async find() {
    this.search?.abort();
    this.search = new AbortController();
    const { signal } = this.search;
    const query = new URLSearchParams({ query: this.input.value, page_size: SHOWN });
    try {
      const answer = await call(`items?${query}`, null, signal);
      if (!signal.aborted) this.show(answer);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof Refused)) throw error;
      this.show({ items: [], total: 0 }, error.message);
    }
  }

  show(answer, wrong) {
    this.options = answer.items;
    this.list.replaceChildren(...answer.items.map((item, place) => {
      const option = made("li", "", item.title);
      option.id = `${this.list.id}-${place}`;
      option.setAttribute("role", "option");
      option.append(made("small", "", item.item_id));
      return option;
    }));
    this.list.hidden = !answer.items.length;
    const more = answer.total > answer.items.length ? `, the first ${answer.items.length} shown` : "";
    this.found.textContent = wrong ?? (answer.total ? `${counted(answer.total, "item")} found${more}` : "No title or id has all these words.");
    say(this.found.textContent);
    this.popup.hidden = false;
    this.input.setAttribute("aria-expanded", String(answer.items.length > 0));
    this.point(-1);
  }

  point(place) {
    this.active = place;
    [...this.list.children].forEach((option, each) => option.setAttribute("aria-selected", String(each === place)));
    if (place < 0) this.input.removeAttribute("aria-activedescendant");
    else this.input.setAttribute("aria-activedescendant", this.list.children[place].id);
  }

  key(event) {
    const count = this.popup.hidden ? 0 : this.options.length;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      const step = event.key === "ArrowDown" ? 1 : -1;
      if (count) this.point(this.active < 0 && step < 0 ? count - 1 : (this.active + step + count) % count);
      else this.find();
    } else if (event.key === "Enter") {
      event.preventDefault();
      if (this.active >= 0 && count) this.choose(this.active);
    } else if (event.key === "Escape") {
      event.preventDefault();
      if (this.popup.hidden) this.input.value = "";
      this.close();
    }
  }

  close() {
    clearTimeout(this.timer);
    this.search?.abort();
    this.popup.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.point(-1);
  }

  choose(place) {
    const item = this.options[place];
    this.input.value = "";
    this.close();
    if (this.items.some((each) => each.item_id === item.item_id)) return say(`${item.title} is chosen already`);
    this.items.push(item);
    const line = made("li");
    const remove = made("button", "", "Remove");
    remove.type = "button";
    remove.setAttribute("aria-label", `Remove ${item.title}`);
    remove.addEventListener("click", () => {
      const next = line.nextElementSibling ?? line.previousElementSibling;
      (next?.querySelector("button") ?? this.input).focus();
      this.items = this.items.filter((each) => each !== item);
      line.remove();
      say(`${item.title} removed`);
      this.changed();
    });
    line.append(made("span", "", item.title), remove);
    this.chosen.append(line);
    say(`${item.title} added`);
    this.changed();
  }

  ids() {
    return this.items.map((item) => item.item_id);
  }
}

// ---------------------------------------------------------------- a run's answer

class Answer {
  constructor(base, state) {
    const part = parts("answer-parts");
    this.base = base;
    this.root = part.querySelector(".answer");
    this.find = (selector) => this.root.querySelector(selector);
    this.tree = this.find("details");
    this.find("h2").textContent = state.run;
    this.root.setAttribute("aria-label", `Run ${state.run}`);
    this.tree.setAttribute("aria-label", `Beam tree of ${state.run}`);
    this.tree.addEventListener("toggle", () => this.tree.open && this.explain());
    byId("answers").append(part);
  }

  clear(text) {
    this.asked?.abort();
    this.asked = this.body = null;
    this.root.removeAttribute("aria-busy");
    this.find(".list").replaceChildren();
    this.tree.hidden = true;
    told(this.find(".warning"), "");
    told(this.root.querySelector(":scope > .error"), "");
    this.find(".asked").textContent = text;
  }

  fail(text) {
    this.clear("");
    told(this.root.querySelector(":scope > .error"), text);
  }

  // Returns the answer, or null where there is none: then the page says why.
  async ask(body) {
    this.asked?.abort();
    this.asked = new AbortController();
    const { signal } = this.asked;
    this.body = body;
    this.why = null;
    this.root.setAttribute("aria-busy", "true");
    try {
      // Which run and method answer may change while the server runs.
      const [answer, state] = await Promise.all([
        call(`${this.base}recommend`, body, signal), call(`${this.base}ready`, null, signal),
      ]);
      signal.throwIfAborted();
      this.root.removeAttribute("aria-busy");
      return { ...answer, state };
    } catch (error) {
      if (error.name === "AbortError") return null;
      if (!(error instanceof Refused)) throw error;
      this.fail(error.message);
      say(error.message);
      return null;
    }
  }

  show(answer, best) {
    const method = this.body.method ?? answer.state.method;
    this.find("h2").textContent = answer.state.run;
    this.find(".asked").textContent = method === "constrained"
      ? "With the probability of each item's code; the longest bar is the most likely item shown."
      : `Found by ${method} search: scores order the list, and are no probabilities.`;
    told(this.root.querySelector(":scope > .error"), "");
    told(this.find(".warning"), answer.left_out.length
      ? `Unknown to this run, and left out of the history: ${answer.left_out.join(", ")}.` : "");
    const rows = answer.items.map((item, place) => {
      const row = made("li");
      row.append(made("span", "place", `${place + 1}.`), made("span", "title", item.title));
      row.append(made("span", "score", method === "constrained" ? `p ${probability(item.score)}` : item.score.toFixed(3)));
      if (method !== "constrained") return row;
      const why = made("button", "", "Why");
      why.type = "button";
      why.setAttribute("aria-label", `Why ${item.title}`);
      why.addEventListener("click", () => this.explain(item));
      row.append(why, bar(Math.exp(item.score - best)));
      return row;
    });
    this.find(".list").replaceChildren(...rows);
    if (!rows.length) this.find(".asked").textContent = "No item may come: the filters leave none.";
    this.tree.hidden = method !== "constrained" || !rows.length;
    if (this.tree.open && !this.tree.hidden) this.explain();
  }

  async explain(item) {
    if (!this.asked) return; // opened in the moment in which the list went
    const { signal } = this.asked;
    if (item) this.why = item;
    if (item && !this.tree.open) {
      this.tree.open = true; // which comes back here
      return;
    }
    const wrong = this.tree.querySelector(".error");
    const why = this.find(".why");
    try {
      if (this.explained?.body !== this.body) {
        const answer = await call(`${this.base}explain`, this.body, signal);
        this.explained = { body: this.body, ...answer };
      }
      if (signal.aborted) return;
      told(wrong, "");
      this.draw(this.explained);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof Refused)) throw error;
      told(wrong, error.message);
      why.hidden = true;
      this.find(".levels").replaceChildren();
      this.find(".branches").replaceChildren();
    }
    if (this.why && !why.hidden) why.focus();
  }

  draw({ tree, items }) {
    // As the tree knows it: the catalogue may have changed since the list was made.
    const target = this.why && items.find((item) => item.item_id === this.why.item_id);
    const path = [];
    const best = Math.max(...tree.branches.map((branch) => branch.score));
    const draw = (branch) => {
      const line = made("li");
      const head = made("div", "branch");
      const inner = branch.branches.map(draw);
      const leads = branch.places.length > 0 || inner.some(([, leads]) => leads);
      const places = branch.places.map((place) => `${place}.`).join(", ");
      const more = branch.num_items - branch.titles.length;
      const titles = branch.titles.join("; ") + (more > 0 ? ` and ${more.toLocaleString("en")} more` : "");
      head.append(bar(Math.exp(branch.score - best)), made("span", "score", `p ${probability(branch.score)}`), made("code", "", branch.code.at(-1)));
      if (branch.complete) head.append(made("span", "titles", `${places || "not in the list:"} ${titles}`));
      else if (!inner.length) head.append(made("span", "titles", `dropped, with ${counted(branch.num_items, "item")}: ${titles}`));
      else head.append(made("span", "titles", counted(branch.num_items, "item")));
      line.append(head);
      line.classList.toggle("listed", branch.complete && leads);
      line.classList.toggle("gone", !leads);
      if (target && same(branch.code, target.code.slice(0, branch.code.length))) {
        line.classList.add("on-path");
        path.unshift(branch);
      }
      if (inner.length) {
        const below = made("ul");
        below.append(...inner.map(([line]) => line));
        line.append(below);
      }
      return [line, leads];
    };
    this.find(".branches").replaceChildren(...tree.branches.map((branch) => draw(branch)[0]));
    this.find(".levels").replaceChildren(...tree.levels.map((level, place) => made("li", "",
      `Level ${place + 1}: prefixes kept ${level.kept.toLocaleString("en")} of ${level.prefixes.toLocaleString("en")}, ` +
      `with ${(100 * level.share).toFixed(1)}% of the probability`)));
    this.explainPath(target, path, tree.levels);
  }

  explainPath(target, path, levels) {
    const why = this.find(".why");
    why.hidden = !this.why;
    if (!this.why) return;
    why.replaceChildren();
    if (!target || !path.at(-1)?.complete) {
      why.append(made("p", "", `${this.why.title} is not in the tree of now: the catalogue or the model changed since.`));
      return;
    }
    why.append(made("p", "", `${target.title} was possible because the filters allow it and each prefix of its code was kept:`));
    const steps = made("ol");
    steps.append(...path.map((branch, place) => made("li", "",
      `${branch.code.join("")} with p ${probability(branch.score)}, one of ${levels[place].kept.toLocaleString("en")} kept; ` +
      `${counted(branch.num_items, "item")} that may come ${branch.complete ? (branch.num_items === 1 ? "has this code" : "have this code") : (branch.num_items === 1 ? "begins so" : "begin so")}`)));
    why.append(steps);
  }
}

// ---------------------------------------------------------------- the whole

const pickers = {};
const answers = [];
let timer = null;
let round = 0;

let saying = null;
function say(text) {
  clearTimeout(saying); // so that what comes at once is said once
  saying = setTimeout(() => { byId("said").textContent = text; }, 100);
}

// Returns the number of a field, null where it is empty; throws Refused where it holds something else.
function whole(id) {
  const field = byId(id);
  const value = field.value === "" ? null : Number(field.value);
  if (field.validity.badInput || (value !== null && !Number.isInteger(value))) throw new Refused(`${FIELDS[id]} takes a whole number.`);
  return value;
}

function body() {
  const asked = {
    history: pickers.history.ids(),
    exclude_history: byId("exclude-history").checked,
    exclude: pickers.exclude.ids(),
    unknown: "skip",
  };
  const given = { allow: pickers.allow.ids(), k: whole("k"), beams: whole("beams"), method: byId("method").value };
  if (given.allow.length) asked.allow = given.allow;
  if (given.k !== null) asked.k = given.k;
  if (given.beams !== null) asked.beams = given.beams;
  if (given.method) asked.method = given.method;
  return asked;
}

async function refresh() {
  const mine = ++round;
  let asked;
  try {
    asked = body();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    answers.forEach((answer) => answer.fail(error.message));
    return;
  }
  if (!asked.history.length) return answers.forEach((answer) => answer.clear("Search a title on this page and choose it: the list comes here."));
  const found = await Promise.all(answers.map((answer) => answer.ask(asked)));
  if (mine !== round) return;
  // One scale, so that bars of two runs can be compared.
  const best = Math.max(...found.flatMap((each) => each?.items.map((item) => item.score) ?? []));
  found.forEach((each, place) => each && answers[place].show(each, best));
  const all = found.filter(Boolean);
  if (all.length) say(all.map((each) => `${each.state.run}: ${counted(each.items.length, "item")}${each.items.length ? `, first ${each.items[0].title}` : ""}`).join(". "));
}

function changed() {
  clearTimeout(timer);
  timer = setTimeout(refresh, 200);
}

async function begin() {
  for (const root of document.querySelectorAll(".picker")) pickers[root.dataset.name] = new Picker(root, changed);
  byId("settings").open = matchMedia("(min-width: 52.01rem)").matches; // on a phone the list comes first
  byId("ask").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["exclude-history", "k", "beams", "method"]) byId(id).addEventListener("input", changed);
  let state;
  try {
    state = await call("ready");
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    told(byId("served"), error.message);
    byId("served").className = "error";
    return;
  }
  byId("served").textContent = `${state.compare ? `Runs ${state.run} and ${state.compare}` : `Run ${state.run}`}, ${counted(state.num_items, "item")}, genrec ${state.version}`;
  answers.push(new Answer("", state));
  if (state.compare) answers.push(new Answer("compare/", { run: state.compare }));
  refresh();
}

begin();
