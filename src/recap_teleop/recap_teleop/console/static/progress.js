// The Progress page: how policies do by iteration, by which labels and from which data they were made.

import { el, get } from "./link.js";
import { nextCard } from "./next.js";
import { COLORS, LINES, drawCurves, drawIntervals } from "./plot.js";
import { say } from "./words.js";

const AGAIN_MS = 5000; // while training runs
const known = (value) => value !== null && value !== undefined;
const percent = (share) => (known(share) ? `${(100 * share).toFixed(0)} %` : "–");
const table = (id, head, rows) => el("div.wider", el("table.list", { id }, el("thead", el("tr", ...head.map((word) => el("th", say(word))))), el("tbody", ...rows.map((row) => el("tr", ...row.map((cell) => el("td.number", cell ?? "–")))))));

// "62 % (51 – 72)", with the 95 % interval.
function interval(value, range, scale, digits, unit) {
  if (!known(value)) return "–";
  const text = (v) => (scale * v).toFixed(digits);
  return el("span.nowrap", `${text(value)}${unit}`, range ? el("span.muted", ` (${text(range[0])} – ${text(range[1])})`) : "");
}

const CHARTS = [
  ["success_rate", "success", "success_ci95", true], ["throughput", "throughput_per_hour", "throughput_ci95", false],
  ["correction_rate", "correction_share", "correction_share_ci95", true], ["length_s", "mean_s", "mean_s_ci95", false],
];

export function page(root, [wanted]) {
  let closed = false, card = null, shownRun = "", timer = 0, busy = false, task = null;
  const top = el("div.filters"), next = el("div"), body = el("div.grid.quarters");
  root.append(top, next, body);

  async function load() {
    clearTimeout(timer);
    let runs = [], run = null;
    try {
      runs = await get("/api/runs");
      if (runs.length) run = await get(`/api/runs/${encodeURIComponent(wanted || runs[0].name)}`);
    } catch (error) { if (!closed) body.replaceChildren(el("p.bad.wide", error.message)); return; }
    if (closed) return;
    if (!run) { body.replaceChildren(el("p.muted.wide", say("no_runs"))); return; }
    if (run.name !== shownRun) {
      shownRun = run.name;
      const choice = el("select", { id: "run", onchange: () => { location.hash = `progress/${encodeURIComponent(choice.value)}`; } }, ...runs.map((one) => el("option", { value: one.name, selected: one.name === run.name }, one.name)));
      top.replaceChildren(say("run"), choice, ...tasks(run));
      card = nextCard(run.name);
      next.replaceChildren(card.element);
    }
    show(run);
    timer = setTimeout(load, card.busy() ? AGAIN_MS : 6 * AGAIN_MS);
  }

  function tasks(run) { // of a run with several tasks one is shown
    const all = [...new Set([...run.evaluations, ...run.collected].map((one) => one.task))].filter(Boolean).sort();
    task = all[0] || "";
    if (all.length < 2) return [];
    const choice = el("select", { id: "task", onchange: () => { task = choice.value; load(); } }, ...all.map((one) => el("option", { value: one }, one)));
    return [choice];
  }

  function show(run) {
    const of = (list) => list.filter((one) => !task || !one.task || one.task === task);
    const evaluations = of(run.evaluations), collected = of(run.collected), main = evaluations.filter((one) => one.main && known(one.iteration)), by = collected.filter((one) => known(one.by));
    const canvases = CHARTS.map(() => el("canvas.chart")), made = curves(run.logs);
    const training = el("div.card.wide", el("h2", say("curves")), made.length ? el("div.grid", ...made.map(([, element]) => element)) : el("p.muted", "–"));
    const running = card.busy(); // then its curves come first
    body.replaceChildren(
      running ? training : "",
      ...CHARTS.map(([word], i) => el("div.card", el("h2", say(word)), canvases[i])),
      el("div.wide.muted", el("b.evaluated", "● "), say("evaluated_by"), el("b.collected", " ◇ "), say("collected_by")),
      el("div.card.wide", el("h2", say("results")), results(evaluations, collected)),
      el("div.card.wide", el("h2", say("failures")), failures(evaluations, collected)),
      el("div.card.wide", el("h2", say("labels_gates")), values(of(run.values))),
      el("div.card.wide", el("h2", say("lineage")), lineage(run.lineage)),
      running ? "" : training,
      el("div.card.wide", el("h2", say("stages_took")), el("div", { id: "stages" }, ...run.stages.map((one) => el("span.tag", `${one.stage} ${known(one.seconds) ? say("of_seconds", one.seconds.toFixed(0)) : "–"}`)))),
      ...run.problems.map((problem) => el("p.bad.wide", problem)));
    requestAnimationFrame(() => {
      const last = Math.max(0, ...main.map((one) => one.iteration), ...by.map((one) => one.by));
      const labels = Array.from({ length: last + 1 }, (_, k) => (k ? `π${k}` : "SFT"));
      CHARTS.forEach(([, key, range, share], i) => {
        const points = (list, at) => list.filter((one) => known(one[key])).map((one) => ({ x: one[at], y: one[key], low: one[range]?.[0], high: one[range]?.[1] }));
        drawIntervals(canvases[i], [{ points: points(main, "iteration"), color: COLORS.blue }, { points: points(by, "by"), color: COLORS.orange, open: true }], labels, share);
      });
      for (const [draw] of made) draw();
    });
  }

  const name = (one) => (one.stage ? one.stage : `${one.policy}${one.asked ? ` (${one.asked})` : ""}`);
  const how = (one) => (one.stage ? (known(one.by) ? say("by_policy", one.by ? `π${one.by}` : "SFT") : say(one.stage)) : say(one.source));

  function results(evaluations, collected) {
    const row = (one) => [el("span", { title: one.file }, name(one)), one.iteration, how(one), one.attempts,
      interval(one.success, one.success_ci95, 100, 0, " %"), interval(one.throughput_per_hour, one.throughput_ci95, 1, 0, ""),
      interval(one.correction_share, one.correction_share_ci95, 100, 0, " %"), interval(one.mean_s, one.mean_s_ci95, 1, 1, " s"), interval(one.mean_success_s, one.mean_success_s_ci95, 1, 1, " s"),
      one.old ? say("old") : ""];
    return table("evaluations", ["policy", "iteration", "how", "evaluated", "success_rate", "throughput", "correction_rate", "length_s", "success_length", ""], [...evaluations, ...collected].map(row));
  }

  function failures(evaluations, collected) {
    const rows = [...evaluations, ...collected].flatMap((one) => (one.failures || []).map((kind) => [name(one), one.iteration, `${kind.reason}${kind.stage ? ` · ${kind.stage}` : ""}`,
      `${kind.count} / ${one.attempts}`, el("span.share", el("i", { style: `width:${100 * kind.share}%` })), interval(kind.share, kind.ci95, 100, 0, " %")]));
    return rows.length ? table("failures", ["policy", "iteration", "reason", "count", "", "share"], rows) : el("p.muted", say("no_failures"));
  }

  function values(list) {
    const gates = Object.keys(list[0]?.gates || {});
    return table("gates", ["stage", "threshold", "positive_share", ...gates, "gates"], list.map((one) => [one.stage, known(one.threshold) ? one.threshold.toFixed(3) : "–",
      el("span.nowrap", { title: Object.entries(one.positive_by_source).map(([source, share]) => `${source}: ${percent(share)}`).join("\n") }, percent(one.positive)),
      ...gates.map((gate) => (known(one.gates[gate]) ? one.gates[gate].toFixed(2) : "–")),
      el("div.reasons", one.problems.length ? el("b.bad", `✗ ${one.problems.join("; ")}`) : el("b.evaluated", "✓"), ...[...one.notices, ...one.unmeasured].map((text) => el("div.muted", text)))]));
  }

  function lineage(list) {
    return table("lineage", ["model", "begins_as", "learned_from", "attempts", "labelled_by", "threshold", "made", "code"], list.map((one) => [
      el("b", one.checkpoint), one.start || say("scratch"), one.bags.join(", ") || "–", one.attempts || "–", one.value || "–", known(one.threshold) ? one.threshold.toFixed(3) : "–",
      el("span.nowrap", new Date(one.made).toLocaleString(document.documentElement.lang, { dateStyle: "short", timeStyle: "short" })), one.code.slice(0, 10)]));
  }

  // One picture a training: the losses that its log holds. → [how to draw it, element]
  function curves(logs) {
    return Object.entries(logs).filter(([, log]) => log.length > 1).map(([training, log]) => {
      const keys = Object.keys(log[0]).filter((key) => key !== "step" && typeof log[0][key] === "number").slice(0, 4), canvas = el("canvas.curve");
      const series = keys.map((key) => ({ x: log.map((entry, i) => entry.step ?? i), y: log.map((entry) => entry[key] ?? null) }));
      const legend = keys.map((key, i) => el("b", { style: `color:${LINES[i % LINES.length]}` }, ` ${key}`));
      return [() => drawCurves(canvas, series), el("div", { "data-training": training }, el("h2", training, ...legend), canvas)];
    });
  }

  load();
  return {
    state() {
      if (!card) return;
      card.state();
      if (busy && !card.busy()) load(); // it has ended
      busy = card.busy();
    },
    close() { closed = true; clearTimeout(timer); },
  };
}
