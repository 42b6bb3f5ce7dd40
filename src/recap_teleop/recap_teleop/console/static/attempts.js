// The Attempts page: a table of all episodes, with filters and sort; one of them opens in attempt.js.

import { el, get, post } from "./link.js";
import * as attempt from "./attempt.js";
import { say } from "./words.js";

const COLUMNS = [
  ["id", (row) => row.id], ["task", (row) => row.task], ["iteration", (row) => row.iteration || "–"], ["source", (row) => row.source],
  ["checkpoint", (row) => row.checkpoint.split("/").slice(-2).join("/") || "–"], ["outcome", (row) => row.outcome],
  ["length", (row) => `${row.length_s.toFixed(1)} s`, (row) => row.length_s], ["corrected", (row) => (row.corrected ? `${(100 * row.corrected).toFixed(0)} %` : "–"), (row) => row.corrected],
  ["reviewers", (row) => row.by.join(", ") || "–"],
];
const kept = { sort: 0, down: true, text: "", outcome: "all", who: "all", order: [] };

export function page(root, [id]) {
  if (id) return attempt.page(root, id, kept.order);
  let table = { rows: [], problems: [], agreement: [], bags_waiting: 0 };
  const find = el("input", { id: "find", placeholder: say("filter"), value: kept.text, oninput: () => { kept.text = find.value; show(); } });
  const outcome = el("select", { id: "outcome", onchange: () => { kept.outcome = outcome.value; show(); } }, ...["all", "success", "failure", "discarded", "unknown"].map((one) => el("option", { value: one, selected: one === kept.outcome }, say(one))));
  const who = el("select", { id: "judged", onchange: () => { kept.who = who.value; show(); } });
  const count = el("span.muted", { id: "count" }), bring = el("button", { id: "convert", type: "button", hidden: true, onclick: convert });
  const head = el("tr"), body = el("tbody"), notes = el("div");
  root.append(el("div.filters", find, outcome, who, bring, count), el("div.scroll", el("table.list", { id: "attempts" }, el("thead", head), body)), notes);

  async function convert() {
    bring.disabled = true;
    const answer = await post("/api/attempts/convert");
    bring.disabled = false;
    await load();
    if (answer.text || answer.problems?.length) notes.prepend(el("div.bad", answer.text || answer.problems.join(" · ")));
  }

  function show() {
    head.replaceChildren(...COLUMNS.map(([word], i) => el("th", { "aria-sort": i === kept.sort ? (kept.down ? "descending" : "ascending") : false },
      el("button", { type: "button", onclick: () => { kept.down = i === kept.sort ? !kept.down : false; kept.sort = i; show(); } }, `${say(word)}${i === kept.sort ? (kept.down ? " ▼" : " ▲") : ""}`))));
    const text = kept.text.toLowerCase();
    const rows = table.rows.filter((row) => (kept.outcome === "all" || row.outcome === kept.outcome)
      && (kept.who === "all" || (kept.who === "unjudged" ? !row.by.length : row.by.includes(kept.who)))
      && (!text || COLUMNS.some(([, cell]) => cell(row).toLowerCase().includes(text))));
    const key = COLUMNS[kept.sort][2] || COLUMNS[kept.sort][1];
    rows.sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0) * (kept.down ? -1 : 1));
    kept.order = rows.map((row) => row.id);
    count.textContent = say("shown", rows.length, table.rows.length);
    body.replaceChildren(...rows.map((row) => el("tr.row", { tabindex: 0, "data-id": row.id, onclick: () => open(row.id), onkeydown: (event) => { if (event.key === "Enter") open(row.id); } },
      ...COLUMNS.map(([word, cell]) => (word === "outcome" ? el("td", el(`span.tag.${row.outcome}`, say(row.outcome)), row.outcome === row.recorded ? "" : el("span.muted", ` (${say("recorded")}: ${say(row.recorded)})`)) : el("td.number", cell(row)))))));
    if (!rows.length) body.append(el("tr", el("td", { colspan: COLUMNS.length }, say("no_attempts"))));
  }

  async function load() {
    try { table = await get("/api/attempts"); } catch (error) { notes.replaceChildren(el("div.bad", error.message)); }
    const names = [...new Set(table.rows.flatMap((row) => row.by))].sort();
    who.replaceChildren(...["all", "unjudged", ...names].map((one) => el("option", { value: one, selected: one === kept.who }, one === "all" || one === "unjudged" ? `${say("reviewers")}: ${say(one)}` : one)));
    bring.hidden = !table.bags_waiting;
    bring.textContent = say("convert", table.bags_waiting);
    show();
    notes.replaceChildren(
      ...table.agreement.map((pair) => el("div", { id: "agreement" }, el("b", `${say("agreement")}: `), say("agree", pair.a, pair.b, pair.alike, pair.both, pair.kappa ?? "–"))),
      ...table.problems.map((problem) => el("div.bad", problem)));
  }
  load();
  return { close() {} };
}

function open(id) { location.hash = `attempts/${encodeURIComponent(id)}`; }
