// The Health page: is every part there, in time, and is there room.

import { el, get, link } from "./link.js";
import { say } from "./words.js";

const LEVEL = ["on", "warn", "error", "error"];
const number = (values, key) => (key in values ? Number(values[key]) : null);
const cells = (row, kind = "td") => el("tr", ...row.map((text) => el(kind, text ?? "–")));
const table = (head, rows, id) => el("table.list", { id }, el("thead", cells(head, "th")), el("tbody", ...rows.map((row) => cells(row))));

function nodes(list) {
  return list.map((node) => {
    const worst = node.live ? Math.max(0, ...node.lines.map((line) => line.level)) : 2;
    return el("div.card", { "data-node": node.name },
      el("h2", el(`span.dot.${LEVEL[worst]}`), el("b", node.name.replace(/^\//, "")), node.live ? "" : ` · ${say("node_silent", node.age_s.toFixed(0))}`),
      ...node.lines.map((line) => el("div", { title: Object.entries(line.values).map(([key, value]) => `${key}: ${value}`).join("\n") },
        el(`span.dot.${LEVEL[line.level]}`), el("span.muted", `${line.name}: `), line.text)));
  });
}

function loops(list) {
  const rows = [];
  for (const node of list) for (const line of node.lines) {
    if (!("period_p99_ms" in line.values)) continue;
    const of = (key, digits) => { const value = number(line.values, key); return value === null ? null : value.toFixed(digits); };
    rows.push([`${node.name}: ${line.name}`, of("rate_hz", 2), of("period_p50_ms", 2), of("period_p99_ms", 2), of("period_max_ms", 1), of("missed", 0), of("realtime_priority", 0)]);
  }
  return table([say("node"), say("hz"), "p50 ms", "p99 ms", "max ms", say("missed"), say("realtime")], rows, "loops");
}

function drops(list) {
  const rows = [];
  for (const node of list) for (const line of node.lines) if ("dropped" in line.values) rows.push([`${node.name}: ${line.name}`, line.values.dropped, line.values.queued, line.values.written]);
  return table([say("node"), say("dropped", ""), say("queued"), say("written")], rows, "drops");
}

function machine(m) {
  const gpus = m.gpus.length ? m.gpus.map((gpu) => el("dd", `${gpu.name}: ${gpu.busy_percent} % · ${gpu.memory_mb} / ${gpu.memory_total_mb} MB · ${gpu.temperature_c} °C`)) : [el("dd", say("no_gpu"))];
  const hours = m.hours_left === null ? say("hours_unknown") : say("hours", m.hours_left);
  return el("dl",
    el("dt", say("disk")), el("dd", el("b", { id: "hours" }, hours), ` · ${say("free", m.disk_free_gb)}`, m.mb_per_s ? el("div.muted", say("rate", m.mb_per_s, m.bags)) : el("div.muted", m.bags)),
    el("dt", say("cpu")), el("dd", { id: "cpu" }, m.cpu.map((one) => `${one.toFixed(0)} %`).join(" · ")),
    el("dt", say("memory")), el("dd", `${m.memory_gb[0]} / ${m.memory_gb[1]} GB`),
    el("dt", say("gpu")), ...gpus);
}

function streams(now) {
  const rows = [...now.topics, ...now.sources].map((stream) => [
    el("span", el(`span.dot${stream.live ? ".on" : ""}`), stream.topic), `${stream.rate_hz.toFixed(1)}`, stream.wanted_hz ? say("of_hz", stream.wanted_hz.toFixed(0)) : "", stream.age_s === null ? say("never") : `${stream.age_s.toFixed(2)} s`]);
  return table([say("streams"), say("hz"), "", ""], rows, "streams");
}

export function page(root) {
  const computer = el("div.card", el("h2", say("computer")), el("div")), loop = el("div.card.wide", el("h2", say("loops")), el("div"));
  const drop = el("div.card.twice", el("h2", say("drops")), el("div")), stream = el("div.card.wide", el("div")), all = el("div.grid.wide");
  root.append(el("div.grid", computer, drop, loop, stream, all));
  let closed = false;
  async function look() {
    try {
      const now = await get("/api/health");
      if (closed) return;
      computer.lastChild.replaceChildren(machine(now.machine));
      loop.lastChild.replaceChildren(loops(now.nodes));
      drop.lastChild.replaceChildren(drops(now.nodes));
      all.replaceChildren(...nodes(now.nodes));
      if (link.state?.cell) stream.lastChild.replaceChildren(streams(link.state.cell));
    } catch { /* the banner says that the connection is lost */ }
    if (!closed) setTimeout(look, 1000);
  }
  look();
  return { close() { closed = true; } };
}
