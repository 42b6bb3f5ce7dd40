// The next iteration: what it will do and how long it takes, a start that is confirmed, its progress, a cancel.

import { el, link, post, put, seconds } from "./link.js";
import { say } from "./words.js";

const SURE_MS = 6000;

export function duration(s) {
  if (s === null || s === undefined) return say("no_estimate");
  if (s < 90) return say("of_seconds", Math.max(1, Math.round(s)));
  return s < 5400 ? say("of_minutes", Math.round(s / 60)) : say("of_hours", (s / 3600).toFixed(1));
}

const clock = (s) => `${Math.floor(s / 60)}:${String(Math.floor(s % 60)).padStart(2, "0")}`;

// run: name of the run that is shown. → {element, state(), busy()}
export function nextCard(run) {
  const body = el("div"), element = el("div.card.wide", { id: "next" }, el("h2", say("next_iteration")), body);
  const bar = el("i"), doing = el("div.number", { id: "training" }), problem = el("div.bad");
  const cancel = el("button.wrong", { type: "button", id: "cancel-training", onclick: cancelled }, say("cancel"));
  const next = el("button.take", { type: "button", id: "plan-next", onclick: ask }, say("plan_next"));
  const last = el("span.muted", { id: "last-training" });
  const working = el("div", el("div.bar", bar), el("div.filters", doing, cancel));
  const idle = el("div.filters", next, last);
  const withheld = el("div", { id: "withheld", hidden: true }), reasons = el("p.bad");
  const accept = el("button.wrong", { type: "button", id: "accept", onclick: () => decide(true) }, say("accept_anyway"));
  withheld.append(reasons, el("div.filters", accept, el("button", { type: "button", id: "leave", onclick: () => decide(false) }, say("leave_it"))));
  element.append(withheld);
  let meant = -1e9; // since when it is asked whether a bad checkpoint is really wanted
  let plan = null, sure = -1e9, shown = "";

  async function ask() {
    next.disabled = true;
    put(last, say("planning"));
    const answer = await post("/api/train/plan", { run });
    shown = "";
    plan = answer.ok === false ? null : answer;
    put(problem, answer.ok === false ? answer.text : "");
    state();
  }

  async function start() {
    const answer = await post("/api/train/start", { run, iteration: plan.iteration });
    put(problem, answer.ok ? "" : answer.text);
    if (answer.ok) plan = null;
    shown = "";
    state();
  }

  async function cancelled() {
    if (performance.now() - sure > SURE_MS) { sure = performance.now(); state(); return; }
    sure = -1e9;
    const answer = await post("/api/train/cancel");
    put(problem, answer.ok ? "" : answer.text);
  }

  async function decide(accepts) {
    if (accepts && performance.now() - meant > SURE_MS) { meant = performance.now(); state(); return; }
    meant = -1e9;
    const answer = await post("/api/train/decide", { checkpoint: link.state.training.withheld, accept: accepts });
    put(problem, answer.ok ? "" : answer.text);
  }

  function told() {
    const does = {
      episodes: say("does_episodes", plan.attempts, plan.new), value: say("does_value", plan.value_steps),
      labels: say("does_labels", Math.round(100 * plan.positive)), policy: say("does_policy", plan.policy_steps),
    };
    const like = plan.like < 0 || plan.seconds === null ? "" : ` · ${say("estimate_like", plan.like)}`;
    return el("div", { id: "plan" }, el("b", say("will_make", plan.iteration)),
      el("table.list", el("tbody", ...plan.steps.map((step) => el("tr", el("td", does[step.stage] || step.stage), el("td.number", duration(step.seconds)))),
        el("tr", el("td", el("b", say("altogether"))), el("td.number", el("b", { id: "estimate" }, duration(plan.seconds)), el("span.muted", like))))),
      el("p.muted", say("will_offer")),
      plan.begun.length ? el("p.bad", say("begun", plan.begun.join(", "))) : null,
      plan.problem ? el("p.bad", plan.problem) : null,
      el("div.filters", plan.problem ? null : el("button.good", { type: "button", id: "start-training", onclick: start }, say("start_training", plan.iteration)),
        el("button", { type: "button", id: "no-training", onclick: () => { plan = null; shown = ""; state(); } }, say("not_now"))));
  }

  function state() {
    const now = link.state?.training, face = !now ? "absent" : now.busy ? "busy" : plan ? "plan" : "idle";
    if (face === "busy") plan = null;
    withheld.hidden = !now?.withheld;
    if (now?.withheld) {
      put(reasons, say("withheld", now.withheld.split("/").slice(-2).join("/"), now.reasons.join("; ")));
      put(accept, say(performance.now() - meant < SURE_MS ? "accept_sure" : "accept_anyway"));
    }
    if (face !== shown) {
      shown = face;
      body.replaceChildren({ absent: el("p.muted", say("no_learner")), busy: working, plan: plan && told(), idle }[face], problem);
      next.disabled = false;
      put(last, "");
    }
    if (face === "busy") {
      bar.style.width = `${100 * now.progress}%`;
      const since = now.began_s ? ` · ${clock(seconds() - now.began_s)}` : "", of = now.began_s && now.seconds ? ` · ${say("expected", duration(now.seconds))}` : "";
      put(doing, `${now.run ? `${now.run} · ${say("iteration")} ${now.iteration} · ` : ""}${now.text}${since}${of}`);
      put(cancel, say(performance.now() - sure < SURE_MS ? "cancel_sure" : "cancel"));
    } else if (face === "idle" && !next.disabled) {
      put(last, now.text === "idle" ? "" : now.text);
      last.className = now.failed ? "bad" : "muted";
    }
  }
  state();
  return { element, state, busy: () => Boolean(link.state?.training?.busy) };
}
