// One recorded attempt: its cameras in step, the tracks under them, and what a reviewer says with the keyboard.

import { el, get, name, post, put } from "./link.js";
import { COLORS, drawValue, prepare } from "./plot.js";
import { say } from "./words.js";

const AHEAD = 24, AT_ONCE = 6, KEPT = 1500; // pictures fetched ahead, at a time, and kept of each camera
const SPEEDS = [1, 2, 4];

// The pictures of one camera, fetched as they are needed and a little ahead.
class Film {
  constructor(id, camera, ticks) { Object.assign(this, { id, camera, ticks, blobs: new Map(), busy: 0, canvas: el("canvas", { width: 320, height: 240 }), drawn: -1, decoding: -1, wanted: -1 }); }

  index(tick) { // the last picture at or before a tick
    let low = 0, high = this.ticks.length - 1;
    while (low < high) { const middle = (low + high + 1) >> 1; if (this.ticks[middle] <= tick) low = middle; else high = middle - 1; }
    return low;
  }

  async show(tick) {
    if (!this.ticks.length) return;
    const index = this.wanted = this.index(tick);
    this.fill(index);
    const blob = this.blobs.get(index);
    if (!blob || index === this.drawn || this.decoding >= 0) return; // one at a time: a slow browser shows fewer
    this.decoding = index;
    const bitmap = await createImageBitmap(blob).catch(() => null);
    this.decoding = -1;
    this.drawn = index;
    if (bitmap) {
      if (this.canvas.width !== bitmap.width) { this.canvas.width = bitmap.width; this.canvas.height = bitmap.height; }
      this.canvas.getContext("2d").drawImage(bitmap, 0, 0);
      bitmap.close();
    }
    if (this.wanted !== index) this.show(this.ticks[this.wanted]);
  }

  fill(from) {
    for (let i = from; i < Math.min(from + AHEAD, this.ticks.length) && this.busy < AT_ONCE; i++) {
      if (this.blobs.has(i)) continue;
      if (this.blobs.size > KEPT) this.blobs.delete(this.blobs.keys().next().value);
      this.blobs.set(i, null);
      this.busy++;
      fetch(`/api/attempts/${encodeURIComponent(this.id)}/${encodeURIComponent(this.camera)}/${this.ticks[i]}`)
        .then((answer) => (answer.ok ? answer.blob() : null)).catch(() => null)
        .then((blob) => { this.busy--; this.blobs.set(i, blob); this.fill(this.wanted); if (i === this.wanted) this.show(this.ticks[i]); });
    }
  }
}

export function page(root, id, order) {
  const keys = {}, view = { state() {}, close() { closed = true; }, keys };
  let closed = false;
  get(`/api/attempts/${encodeURIComponent(id)}`).then((attempt) => { if (!closed) build(attempt); }, (error) => root.append(el("p.bad", error.message), el("button", { type: "button", onclick: back }, say("back"))));
  const back = () => { location.hash = "attempts"; };

  function build(a) {
    const films = a.cameras.map((camera) => new Film(id, camera, a.images[camera]));
    const tracks = el("canvas.tracks", { height: 10, tabindex: 0 }), range = el("input", { type: "range", min: 0, max: a.ticks - 1, value: 0, "aria-label": say("play"), oninput: () => go(Number(range.value)) });
    const time = el("b.number"), play = el("button", { type: "button", id: "play", onclick: toggle }), speedy = el("button", { type: "button", onclick: faster });
    const verdict = el("div.card"), neighbours = order.length ? order : [id];
    let tick = 0, playing = true, speed = 1, before = performance.now(), carried = 0;
    tracks.style.height = "250px";
    root.append(el("div.attempt",
      el("div", el("div.film", ...films.map((film) => film.canvas)), range,
        el("div.filters", play, speedy, time, el("span.muted", say("legend"))), tracks, el("p.muted", say("keys_attempt")), a.damage ? el("p.bad", a.damage) : null),
      el("div", el("div.filters", el("button", { type: "button", onclick: back }, say("back")), el("button", { type: "button", onclick: () => step(-1) }, say("previous"), el("kbd", "p")), el("button", { type: "button", onclick: () => step(1) }, say("next"), el("kbd", "n"))),
        el("h2", el("b", a.id)), el("p", { title: a.checkpoint }, `${a.prompt || a.task} · ${a.source} · ${a.checkpoint.split("/").slice(-2).join("/") || "–"}`), verdict)));

    function go(to) { tick = Math.max(0, Math.min(a.ticks - 1, Math.round(to))); films.forEach((film) => film.show(tick)); range.value = tick; put(time, `${(tick * a.step_s).toFixed(2)} / ${(a.ticks * a.step_s).toFixed(2)} s`); drawTracks(tracks, a, tick); }
    function toggle() { if (!playing && tick >= a.ticks - 1) go(0); playing = !playing; put(play, say(playing ? "pause" : "play")); }
    function faster() { speed = SPEEDS[(SPEEDS.indexOf(speed) + 1) % SPEEDS.length]; put(speedy, `${speed}×`); }
    function step(by) { const at = neighbours.indexOf(id) + by; if (at >= 0 && at < neighbours.length) location.hash = `attempts/${encodeURIComponent(neighbours[at])}`; else back(); }
    function frame(now) {
      if (closed) return;
      requestAnimationFrame(frame);
      if (playing) {
        carried += ((now - before) / 1000) * speed / a.step_s;
        const whole = Math.floor(carried);
        carried -= whole;
        if (whole) go(tick + whole);
        if (tick >= a.ticks - 1) toggle();
      } else films.forEach((film) => film.show(tick));
      before = now;
    }

    async function judge(kind, what = {}) {
      if (!name()) { shown(say("need_name")); document.getElementById("who").focus(); return; }
      const answer = await post(`/api/attempts/${encodeURIComponent(id)}/judgement`, { who: name(), kind, ...what });
      if (answer.ok === false) { shown(answer.text); return; }
      a.judgement = answer;
      shown("");
      drawTracks(tracks, a, tick);
    }

    function shown(problem) {
      const j = a.judgement, criteria = Object.entries(a.rubric.criteria || {});
      const pressed = (outcome) => String(j.outcome === outcome);
      verdict.replaceChildren(el("div",
        el("h2", say("judgement")),
        problem ? el("p.bad", problem) : null,
        el("p", { id: "verdict" }, el(`span.tag.${j.outcome || a.recorded.outcome}`, say(j.outcome || a.recorded.outcome)), el("span.muted", ` ${say("recorded")}: ${say(a.recorded.outcome)}${a.recorded.reason ? ` (${a.recorded.reason})` : ""}`)),
        el("div.verdict", ...[["success", "s", "success"], ["failure", "f", "failure"], ["discard", "d", "discarded"]].map(([word, key, outcome]) => el("button", { type: "button", "aria-pressed": pressed(outcome), onclick: () => judge("outcome", { outcome }) }, say(word), el("kbd", key))),
          el("button", { type: "button", onclick: () => judge("undo") }, say("undo"), el("kbd", "u")),
          el("button", { type: "button", onclick: () => judge("failed", { tick }) }, say("failed_here"), el("kbd", "l"))),
        criteria.length ? el("h2", say("rubric")) : null,
        ...criteria.map(([criterion, question], i) => el("div.criterion", el("kbd", String(i + 1)), question, el("button", { type: "button", "aria-pressed": String(criterion in j.criteria), onclick: () => toggleCriterion(i) }, criterion in j.criteria ? say(j.criteria[criterion] ? "yes" : "no") : "–"))),
        el("div.filters", ...a.task_stages.map((stage) => el("button", { type: "button", onclick: () => judge("stage", { stage, tick }) }, say("stage_here", stage)))),
        el("h2", say("log")),
        el("div", { id: "log" }, ...[...j.log].reverse().filter((entry) => entry.kind !== "undo").map((entry) => el("div.muted",
          el(j.undone.includes(entry.id) ? "s" : "span", `${entry.who}: ${entry.kind} ${entry.outcome || entry.name || entry.stage || ""}${entry.met === undefined ? "" : entry.met ? " ✓" : " ✗"}${entry.tick === undefined ? "" : ` ${(entry.tick * a.step_s).toFixed(2)} s`}`), j.undone.includes(entry.id) ? ` (${say("before_undo")})` : "")))));
    }
    function toggleCriterion(i) { const criterion = Object.keys(a.rubric.criteria || {})[i]; if (criterion) judge("criterion", { name: criterion, met: !(a.judgement.criteria[criterion] ?? false) }); }

    Object.assign(keys, {
      ArrowLeft: (event) => { pause(); go(tick - (event.shiftKey ? 10 : 1)); }, ArrowRight: (event) => { pause(); go(tick + (event.shiftKey ? 10 : 1)); },
      Home: () => { pause(); go(0); }, End: () => { pause(); go(a.ticks - 1); }, " ": toggle, v: faster,
      s: () => judge("outcome", { outcome: "success" }), f: () => judge("outcome", { outcome: "failure" }), d: () => judge("outcome", { outcome: "discarded" }),
      u: () => judge("undo"), l: () => judge("failed", { tick }), n: () => step(1), p: () => step(-1), Escape: back,
    });
    for (let i = 0; i < 9; i++) keys[String(i + 1)] = () => toggleCriterion(i);
    function pause() { if (playing) toggle(); }
    const scrub = (event) => { if (event.buttons) { pause(); const box = tracks.getBoundingClientRect(); go(((event.clientX - box.left - LEFT) / (box.width - LEFT - 4)) * a.ticks); } };
    tracks.onpointerdown = (event) => { tracks.setPointerCapture(event.pointerId); scrub(event); };
    tracks.onpointermove = scrub;
    put(play, say("pause")); put(speedy, "1×");
    shown("");
    go(0);
    requestAnimationFrame((now) => { before = now; frame(now); });
  }
  return view;
}

const LEFT = 44;
function drawTracks(canvas, a, tick) {
  const { pen, width, height } = prepare(canvas);
  const x = (t) => LEFT + (width - LEFT - 4) * t / a.ticks, top = 6, low = height - (a.advantage ? 110 : 44), foot = low + (a.advantage ? 80 : 14), y = (v) => top + (low - top) * -Math.max(-1, Math.min(0, v));
  const band = (spans, color, from, to) => { pen.fillStyle = color; for (const [begin, end] of spans) pen.fillRect(x(begin), from, Math.max(1, x(end) - x(begin)), to - from); };
  band(a.held, "#dde1e5", top, low);
  band(a.corrections, "#e3cdec", top, low);
  pen.fillStyle = COLORS.muted; pen.strokeStyle = COLORS.line; pen.lineWidth = 1;
  for (const v of [0, -0.5, -1]) { pen.beginPath(); pen.moveTo(LEFT, y(v)); pen.lineTo(width, y(v)); pen.stroke(); pen.fillText(v.toFixed(1), 4, y(v) + 4); }
  if (a.value) drawValue(pen, a.value.map((v, i) => [i * a.step_s, v]).filter((point) => point[1] !== null), 1 / (2 * a.max_episode_s), (t) => x(t / a.step_s), y);
  else { pen.font = "14px system-ui, sans-serif"; pen.fillText(say("no_value"), LEFT + 10, (top + low) / 2); pen.font = "11px system-ui, sans-serif"; }
  pen.fillStyle = COLORS.muted;
  pen.fillText(say("value"), LEFT + 4, top + 10);
  if (a.advantage) drawAdvantage(pen, a.advantage, x, width, low + 6, low + 58);
  if (a.indicator && a.advantage) for (const positive of [true, false]) band(spans(a.indicator, positive), positive ? COLORS.green : COLORS.red, low + (positive ? 62 : 68), low + 74);
  const stages = a.judgement.stages.length ? a.judgement.stages : a.stages;
  pen.fillStyle = COLORS.ink;
  stages.forEach(([begin, stage], i) => { pen.fillRect(x(begin), foot, 1, 18); const next = stages[i + 1]?.[0] ?? a.ticks; if (x(next) - x(begin) > pen.measureText(stage).width + 6) pen.fillText(stage, x(begin) + 4, foot + 14); });
  if (a.judgement.failed_tick !== null) { pen.fillStyle = COLORS.red; pen.fillRect(x(a.judgement.failed_tick) - 1, top, 3, low - top); pen.fillText("✗", x(a.judgement.failed_tick) + 4, top + 12); }
  pen.fillStyle = COLORS.ink; pen.fillRect(x(tick) - 1, top, 2, height - top);
}

function spans(flags, wanted) { // stretches in which a flag is `wanted`: [from, to)
  const found = [];
  flags.forEach((flag, i) => { if (Boolean(flag) !== wanted) return; const last = found[found.length - 1]; if (last?.[1] === i) last[1] = i + 1; else found.push([i, i + 1]); });
  return found;
}

// On a scale of its own, which a few large ones (the end of an attempt) do not set: those are cut off.
function drawAdvantage(pen, advantage, x, width, top, low) {
  const sizes = advantage.filter((v) => v !== null).map(Math.abs).sort((a, b) => a - b), most = sizes[Math.floor(0.95 * (sizes.length - 1))] || 1e-6;
  const middle = (top + low) / 2, y = (v) => middle - (low - top) / 2 * Math.max(-1, Math.min(1, v / most));
  pen.strokeStyle = COLORS.line; pen.lineWidth = 1;
  pen.beginPath(); pen.moveTo(LEFT, middle); pen.lineTo(width, middle); pen.stroke();
  pen.strokeStyle = COLORS.ink; pen.lineWidth = 1.4;
  pen.beginPath();
  advantage.forEach((v, i) => { if (v !== null) pen.lineTo(x(i), y(v)); });
  pen.stroke();
  pen.fillStyle = COLORS.muted;
  pen.fillText(`+${most.toPrecision(2)}`, 4, top + 8); pen.fillText(`−${most.toPrecision(2)}`, 4, low);
  pen.fillText(say("advantage"), LEFT + 4, top + 8);
}
