// The Live page: what the robot sees and does, who commands it, and the buttons.

import { el, link, openCameras, post, put, seconds } from "./link.js";
import { drawJoints, drawLiveValue } from "./plot.js";
import { say } from "./words.js";

const SPAN_S = 10, DRAW_MS = 66, CONFIRM_MS = 5000;
const SLOW_S = 0.5; // a picture older than this is said to be old
let confirm = -1e9;

export function act(action, body) { return post(`/api/do/${action}`, body); }

// What the two-faced buttons mean at this moment.
export function takeOrHand() { act(link.state?.cell?.person_wanted ? "hand_back" : "take_over"); }
export function resumeOrRelease() {
  if (link.state?.cell?.mode.name !== "ESTOP") { act("resume"); return; }
  if (performance.now() - confirm < CONFIRM_MS) { confirm = -1e9; act("release_estop"); } else confirm = performance.now();
}
export function confirmRelease() { if (performance.now() - confirm < CONFIRM_MS) { confirm = -1e9; act("release_estop"); } }
export function startOrReset() { act(waitsForPerson() ? "reset_done" : "start"); }
const waitsForPerson = () => link.state?.cell?.episode.state === "RESETTING" && link.state.cell.episode.message;

const BUTTONS = [
  ["start", "n", startOrReset, ""], ["success", "s", () => act("success"), "good"], ["failure", "f", () => act("failure"), "wrong"],
  ["discard", "d", () => act("discard"), ""], ["undo", "u", () => act("undo"), ""], ["take_over", "space", takeOrHand, "take"],
  ["resume", "r", resumeOrRelease, ""], ["next_stage", "g", () => act("stage", { stage: "" }), ""],
];
export const KEYS = { " ": takeOrHand, n: startOrReset, s: () => act("success"), f: () => act("failure"), d: () => act("discard"), u: () => act("undo"), r: resumeOrRelease, y: confirmRelease, g: () => act("stage", { stage: "" }) };

function groups(joints) {
  const arms = new Map();
  joints.forEach((joint, i) => {
    const prefix = joint.gripper ? "grippers" : ["left", "right"].find((side) => joint.name.startsWith(side + "_")) || "arms";
    if (!arms.has(prefix)) arms.set(prefix, []);
    arms.get(prefix).push(i);
  });
  return [...arms].sort(([a], [b]) => (a === "grippers") - (b === "grippers"));
}

const short = (name, group) => (group === "grippers" ? name.split("_")[0] : name.replace(/^(left|right)_/, ""));

function advice(now) {
  const { mode, episode } = now;
  if (!mode.name || !mode.live) return say("a_no_arbiter");
  if (mode.name === "ESTOP") return say("a_estop");
  if (episode.message) return episode.message;
  if (mode.reason === "console silent" && mode.name === "HOLD") return say("a_console");
  const teleop = now.sources.some((source) => source.name === "teleop" && source.live);
  if (now.person_wanted && !teleop) return say("a_no_teleop_wanted");
  if (mode.name === "HOLD" && mode.reason === "stop") return say("a_stopped");
  if (episode.state !== "RUNNING") return say("a_start");
  return teleop ? "" : say("a_no_teleop");
}

export function page(root) {
  const about = link.about, parts = {}, part = (name, what, ...children) => (parts[name] = el(what, ...children));
  const canvases = about.cameras.map((camera) => el("canvas", { width: camera.width, height: camera.height }));
  const labels = about.cameras.map((camera) => el("div.label", camera.name));
  const frames = about.cameras.map(() => ({ times: [], age: null, at: -1e9 }));
  const plots = groups(about.joints).map(([group, joints]) => ({ joints, names: joints.map((i) => short(about.joints[i].name, group)), canvas: el("canvas"), group }));
  const value = el("canvas");
  const buttons = BUTTONS.map(([word, key, press, kind]) => el(`button${kind ? "." + kind : ""}`, { type: "button", id: `b-${word}`, onclick: press }, el("span", say(word)), el("kbd", key)));
  root.append(el("div.live",
    part("mode", "div.card.mode", part("name", "div.name"), el("div", part("why", "div.why"), part("advice", "div.advice"))),
    el("div.side",
      el("div.card", el("h2", say("episode")), part("clock", "div.clock.number"), el("div.bar", part("bar", "i")), part("facts", "dl")),
      el("div.card", el("h2", say("sources")), part("sources", "table.sources")),
      el("div.card.alarms", el("h2", say("alarms")), part("alarms", "div"))),
    el("div.cameras", ...canvases.map((canvas, i) => el("div.camera", canvas, labels[i]))),
    el("div.plots", { style: `grid-template-columns: 1.5fr ${plots.map((p) => (p.group === "grippers" ? ".7fr" : "1fr")).join(" ")}` },
      el("div.card.value", el("h2", say("value"), el("span.muted", ` · ${say("value_legend")}`)), value),
      ...plots.map((plot) => el("div.card", el("h2", { title: say("command_line") }, `${say(plot.group)} `), plot.canvas))),
    el("div.buttons", ...buttons)));
  const closeCameras = openCameras(canvases, (camera, age) => {
    const frame = frames[camera], now = performance.now();
    frame.times.push(now); frame.age = age; frame.at = now;
    while (frame.times.length && now - frame.times[0] > 2000) frame.times.shift();
  });

  function cameras() {
    const now = performance.now();
    frames.forEach((frame, i) => {
      const idle = (now - frame.at) / 1000, old = !(idle + (frame.age || 0) < SLOW_S);
      const rate = frame.times.length > 1 ? ((frame.times.length - 1) / ((now - frame.times[0]) / 1000)).toFixed(0) : "0";
      put(labels[i], `${about.cameras[i].name} · ${old ? (frame.at < 0 ? say("never") : `${(idle + (frame.age || 0)).toFixed(1)} s`) : `${rate} Hz`}`);
      labels[i].classList.toggle("bad", old);
    });
  }

  function show() {
    const state = link.state;
    if (!state?.cell) return;
    const now = state.cell, { mode, episode } = now;
    parts.mode.dataset.mode = mode.name || "NONE";
    parts.mode.dataset.live = Boolean(mode.name && mode.live);
    put(parts.name, say(mode.name || "NONE"));
    put(parts.why, mode.name ? `${say("because", mode.reason)} · ${say("since", mode.for_s.toFixed(mode.for_s < 10 ? 1 : 0))}` : "");
    put(parts.advice, advice(now));
    put(parts.clock, episode.id ? `${episode.elapsed_s.toFixed(1)} / ${episode.limit_s.toFixed(0)} s` : "–");
    const share = episode.limit_s ? Math.min(1, episode.elapsed_s / episode.limit_s) : 0;
    parts.bar.style.width = `${100 * share}%`;
    parts.bar.classList.toggle("late", share > 0.8);
    facts(state, now);
    sources(now);
    alarms(now);
    const running = episode.state === "RUNNING", ended = episode.state === "ENDED" && episode.relabel_s > 0;
    const enabled = { start: !running || null, success: running || ended, failure: running || ended, discard: running || ended || episode.state === "RESETTING", undo: ended, next_stage: running && about.stages.length };
    BUTTONS.forEach(([word], i) => { if (word in enabled) buttons[i].disabled = !enabled[word]; });
    const face = (i, text) => put(buttons[i].firstChild, text);
    face(0, say(waitsForPerson() ? "reset_done" : "start"));
    face(5, say(now.person_wanted ? "hand_back" : "take_over"));
    face(6, say(mode.name !== "ESTOP" ? "resume" : performance.now() - confirm < CONFIRM_MS ? "release_sure" : "release"));
  }

  function facts(state, now) {
    const { episode, recorder, policy } = now, said = state.policy;
    const outcome = episode.outcome ? ` · ${say(episode.outcome.toLowerCase())} (${episode.reason})` : "";
    const relabel = episode.relabel_s > 0 ? ` · ${say("relabel", episode.relabel_s.toFixed(0))}` : "";
    const indicator = said.indicator || (said.chunk_age_s === null ? "none" : "unconditioned");
    const rows = [
      [say("episode"), episode.id ? `${say(episode.state)}${outcome}${relabel}` : say("no_episode")],
      [say("task"), about.prompt],
      [say("subtask"), said.subtask || episode.stage || say("none")],
      [say("advantage"), el(`span.indicator.${indicator}`, { id: "indicator" }, say(indicator))],
      [say("corrections"), `${episode.corrections} · ${episode.corrected_s.toFixed(1)} s`],
      [say("checkpoint"), policy?.text ? `${policy.text}${policy.latency_ms ? ` · ${policy.latency_ms.toFixed(0)} ms` : ""}` : say("none")],
      [say("recorder"), recorder ? `${recorder.text} · ${say("dropped", recorder.dropped)}` : say("none")],
    ];
    parts.facts.replaceChildren(...rows.flatMap(([key, text]) => [el("dt", key), el("dd", text)]));
  }

  function sources(now) {
    parts.sources.replaceChildren(...now.sources.map((source) => el("tr",
      el("td", el(`span.dot${source.live ? ".on" : ""}`), say(source.name)),
      el("td.muted", source.note ? say(source.note) : ""),
      el("td.number", source.age_s === null ? say("never") : source.live ? `${source.rate_hz.toFixed(0)} Hz` : `${source.age_s.toFixed(1)} s`))));
  }

  function alarms(now) {
    const lines = now.alarms.map((alarm) => el("div", el(`span.dot.${alarm.level}`), el("b", `${alarm.name.replace(/^\//, "")} `), alarm.text));
    parts.alarms.replaceChildren(...(lines.length ? lines : [el("div.muted", say("all_well"))]));
  }

  let drawn = 0, frame = 0;
  function draw(now) {
    frame = requestAnimationFrame(draw);
    if (now - drawn < DRAW_MS) return;
    drawn = now;
    const at = seconds();
    for (const plot of plots) drawJoints(plot.canvas, link, plot.joints, plot.names, SPAN_S, at);
    const episode = link.state?.cell?.episode, running = episode?.state === "RUNNING";
    const begin = running ? link.state.now_s - episode.elapsed_s : link.values.length ? link.values[0][0] : at;
    const end = running ? at : begin + (episode?.elapsed_s || 0);
    drawLiveValue(value, link.values, 1 / (2 * about.max_episode_s), begin, episode?.limit_s, end, say("no_value"));
    cameras();
  }
  frame = requestAnimationFrame(draw);
  show();
  return { state: show, close() { cancelAnimationFrame(frame); closeCameras(); } };
}
