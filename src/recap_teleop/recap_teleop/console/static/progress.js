// The Progress page: what a learning run's files say of its policies, gates, lineage and stages.

import { el, get } from "./link.js";
import { drawSeries } from "./plot.js";
import { say } from "./words.js";

const percent = (share) => (share === null || share === undefined ? "–" : `${(100 * share).toFixed(0)} %`);

export function page(root, [wanted]) {
  let closed = false;
  const body = el("div");
  root.append(body);
  async function load() {
    let runs = [], run = null;
    try {
      runs = await get("/api/runs");
      if (runs.length) run = await get(`/api/runs/${encodeURIComponent(wanted || runs[0].name)}`);
    } catch (error) { body.replaceChildren(el("p.bad", error.message)); return; }
    if (closed) return;
    if (!run) { body.replaceChildren(el("p.muted", say("no_runs"))); return; }
    const choice = el("select", { id: "run", onchange: () => { location.hash = `progress/${encodeURIComponent(choice.value)}`; } }, ...runs.map((one) => el("option", { value: one.name, selected: one.name === run.name }, one.name)));
    const success = el("canvas"), throughput = el("canvas"), canvases = [success, throughput];
    canvases.forEach((canvas) => { canvas.style.height = "190px"; });
    body.replaceChildren(el("div.filters", say("run"), choice, el("span.muted", runs.find((one) => one.name === run.name)?.last_stage || "")),
      el("div.grid.halves",
        el("div.card", el("h2", say("success_rate")), success), el("div.card", el("h2", say("throughput")), throughput),
        el("div.card.wide", evaluations(run.evaluations)), el("div.card.wide", el("h2", say("curves")), ...curves(run)), el("div.card.wide", ...lineage(run)),
        el("div.card.wide", el("h2", say("next_iteration")), el("code", "./recap iterate --help"))));
    requestAnimationFrame(() => {
      const policies = run.evaluations, x = policies.map((_, i) => i), labels = policies.map((one) => one.policy);
      const series = (key, interval) => [{ x, y: policies.map((one) => one[key] ?? null), low: policies.map((one) => one[interval]?.[0] ?? null), high: policies.map((one) => one[interval]?.[1] ?? null) }];
      drawSeries(success, series("success", "success_ci95"), labels, true);
      drawSeries(throughput, series("throughput_per_hour", "throughput_ci95"), labels, false);
      for (const [canvas, series] of charts) drawSeries(canvas, series, null, false);
    });
  }
  const charts = [];

  function evaluations(list) {
    const head = ["policy", "evaluated", "success_rate", "throughput", "correction_rate", "length", "failures"];
    const rows = list.map((one) => [one.policy, one.attempts, `${percent(one.success)} (${percent(one.success_ci95?.[0])} – ${percent(one.success_ci95?.[1])})`,
      one.throughput_per_hour === undefined ? "–" : one.throughput_per_hour.toFixed(0), percent(one.correction_share), one.mean_success_s ? `${one.mean_success_s.toFixed(1)} s` : "–",
      Object.entries(one.reasons || {}).filter(([reason]) => reason !== "success").map(([reason, count]) => `${reason} ${count}`).join(", ") || "–"]);
    return el("table.list", { id: "evaluations" }, el("thead", el("tr", ...head.map((word) => el("th", say(word))))), el("tbody", ...rows.map((row) => el("tr", ...row.map((text) => el("td.number", text ?? "–"))))));
  }

  // One curve a training: the losses that its log holds.
  function curves(run) {
    charts.length = 0;
    const made = [];
    for (const [name, log] of Object.entries(run.logs || {})) {
      const keys = Object.keys(log[0]).filter((key) => key !== "step" && typeof log[0][key] === "number").slice(0, 3);
      if (log.length < 2 || !keys.length) continue;
      const canvas = el("canvas");
      canvas.style.height = "130px";
      charts.push([canvas, keys.map((key) => ({ x: log.map((entry, i) => entry.step ?? i), y: log.map((entry) => entry[key] ?? null) }))]);
      made.push(el("div", el("h2", `${name}: ${keys.join(", ")}`), canvas));
    }
    return made.length ? [el("div.grid", ...made)] : [el("p.muted", "–")];
  }

  function lineage(run) {
    const rows = run.stages.map((stage) => {
      const result = stage.result || {}, labels = result.labels || {};
const numbers = ["spread", "spearman", "outcome_auc"].filter((key) => typeof result[key] === "number").map((key) => `${key} ${result[key].toFixed(2)}`);
      const gates = Array.isArray(result.problems) ? [...numbers, result.problems.length ? `✗ ${result.problems.join("; ")}` : "✓"].join(", ") : "";
      return [stage.stage, stage.seconds === null || stage.seconds === undefined ? "–" : stage.seconds.toFixed(0), labels.threshold === undefined ? "–" : labels.threshold.toFixed(3), percent(labels.positive), gates || "–"];
    });
    const manifest = run.manifest ? [el("h2", say("lineage")), el("pre", JSON.stringify(run.manifest, null, 1).slice(0, 4000))] : [];
    return [el("h2", say("lineage")), el("table.list", { id: "stages" }, el("thead", el("tr", ...["stage", "seconds", "threshold", "positive_share", "gates"].map((word) => el("th", say(word))))), el("tbody", ...rows.map((row) => el("tr", ...row.map((text) => el("td.number", text)))))), ...manifest];
  }
  load();
  return { close() { closed = true; } };
}
