"use strict";
// Sortable tables and the browser of replies. Text of users goes into the page by textContent alone.

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => sort(table, heads, column)));
}

function sort(table, heads, column) {
  const down = heads[column].getAttribute("aria-sort") === "ascending";
  heads.forEach((head, i) => head.setAttribute("aria-sort", i !== column ? "none" : down ? "descending" : "ascending"));
  const key = (row) => row.cells[column].dataset.number;
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => {
    const x = key(a), y = key(b);
    if (x !== undefined && y !== undefined) return (x - y) * (down ? -1 : 1);
    if (x !== undefined || y !== undefined) return x !== undefined ? -1 : 1; // what has no number goes last
    return a.cells[column].textContent.localeCompare(b.cells[column].textContent, "en") * (down ? -1 : 1);
  });
  table.tBodies[0].append(...rows);
}

const data = JSON.parse(document.getElementById("replies").textContent);
const at = (id) => document.getElementById(id);
const state = { post: 0, seed: data.seeds[0], text: "", flag: "", off: new Set() };

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function marked(element, text) {
  // the searched words marked, by text nodes; case is folded only where that keeps the length
  const low = text.toLowerCase();
  if (!state.text || low.length !== text.length) { element.textContent = text; return element; }
  let from = 0;
  for (let i = low.indexOf(state.text); i >= 0; i = low.indexOf(state.text, from)) {
    element.append(text.slice(from, i), make("mark", "", text.slice(i, i + state.text.length)));
    from = i + state.text.length;
  }
  element.append(text.slice(from));
  return element;
}

function cell(post, method) {
  const seeds = post.replies[method] || {};
  return seeds[state.seed] || seeds[""] || []; // people and the base model have no seed
}

function matches(post) {
  // [method, replies shown] of every method that is on
  const inPost = !state.text || post.text.toLowerCase().includes(state.text);
  return data.methods.filter((method) => !state.off.has(method.name)).map((method) => [method, cell(post, method.name).filter(
    (reply) => (inPost || reply[0].toLowerCase().includes(state.text))
      && (state.flag === "" || reply[5].includes(Number(state.flag))))]);
}

let visible = []; // places of the posts that have a reply to show

function refresh() {
  visible = data.posts.map((post, i) => [i, matches(post).reduce((n, [, replies]) => n + replies.length, 0)])
    .filter(([, n]) => n > 0);
  const replies = visible.reduce((n, [, k]) => n + k, 0);
  const rule = state.flag === "" ? "" : ` · ${data.flags[state.flag].join(": ")}`;
  at("found").textContent = (visible.length ? `${replies} replies to ${visible.length} posts` : "no reply matches") + rule;
  if (!visible.some(([i]) => i === state.post)) state.post = (visible.find(([i]) => i > state.post) || visible[0] || [0])[0];
  show();
}

function show() {
  const place = visible.findIndex(([i]) => i === state.post);
  at("place").textContent = `${place + 1} / ${visible.length}`;
  at("previous").disabled = place <= 0;
  at("next").disabled = place < 0 || place === visible.length - 1;
  const post = data.posts[state.post];
  at("post").replaceChildren();
  at("columns").replaceChildren();
  if (place < 0) return;
  marked(at("post"), post.text);
  for (const [method, replies] of matches(post)) {
    if (!replies.length && (state.flag !== "" || state.text)) continue;
    const column = make("section", `column m-${method.name}`);
    const head = make("h3", "", method.label);
    const judged = replies.map((reply) => reply[1]).filter((value) => value !== null);
    const mean = judged.reduce((sum, value) => sum + value, 0) / judged.length;
    head.append(make("small", "", judged.length ? `judge ${mean.toFixed(2).replace("-", "−")}` : "no reply"));
    column.append(head, ...replies.map(card));
    at("columns").append(column);
  }
}

function card([text, judge, reward, relevance, tokens, flags]) {
  const box = make("article", "reply");
  const words = marked(make("p", text.trim() ? "" : "none"), text.trim() ? text : "(empty)");
  words.dir = "auto";
  const number = (name, value) => value === null ? "" : `${name} ${value.toFixed(2).replace("-", "−")}`;
  const facts = [number("judge", judge), number("reward", reward), number("relevance", relevance),
    tokens === null ? "" : `${tokens} tokens`];
  const line = make("small");
  for (const fact of facts.filter(Boolean)) line.append(make("span", "", fact));
  box.append(words, line);
  for (const flag of flags) {
    const label = make("span", "flag", data.flags[flag][0]);
    label.title = data.flags[flag][1];
    box.append(label);
  }
  return box;
}

function step(by) {
  const next = visible[visible.findIndex(([i]) => i === state.post) + by];
  if (next) { state.post = next[0]; show(); }
}

for (const seed of data.seeds) at("seed").append(new Option(`seed ${seed}`, seed));
at("flag").append(new Option("any failure or none", ""));
data.flags.forEach(([name], i) => at("flag").append(new Option(name, i)));
for (const method of data.methods) {
  const chip = make("button", `m-${method.name}`);
  chip.append(make("span", "dot"), method.label);
  chip.type = "button";
  chip.setAttribute("aria-pressed", "true");
  chip.addEventListener("click", () => {
    const on = state.off.delete(method.name);
    if (!on) state.off.add(method.name);
    chip.setAttribute("aria-pressed", String(on));
    refresh();
  });
  at("methods").append(chip);
}
at("seed").addEventListener("change", (event) => { state.seed = event.target.value; refresh(); });
at("flag").addEventListener("change", (event) => { state.flag = event.target.value; refresh(); });
at("search").addEventListener("input", (event) => { state.text = event.target.value.trim().toLowerCase(); refresh(); });
at("previous").addEventListener("click", () => step(-1));
at("next").addEventListener("click", () => step(1));
const post = document.querySelector(".post"); // how high it stands, for the heads below it on a phone
new ResizeObserver(() => post.parentElement.style.setProperty("--post", `${post.offsetHeight}px`)).observe(post);

const large = document.createElement("dialog"); // a figure as large as the window; a click or Escape closes it
document.body.append(large);
for (const button of document.querySelectorAll(".zoom")) {
  button.addEventListener("click", () => { large.replaceChildren(button.firstElementChild.cloneNode()); large.showModal(); });
}
large.addEventListener("click", () => large.close());

document.addEventListener("keydown", (event) => {
  const busy = event.target.closest("input, select, .scroll") || event.altKey || event.ctrlKey || event.metaKey;
  if (!busy && event.key === "ArrowLeft") step(-1);
  if (!busy && event.key === "ArrowRight") step(1);
});
refresh();
