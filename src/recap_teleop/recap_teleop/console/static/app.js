// What is on every page: tabs, who is in control, HOLD and E-STOP, the lost connection, keys.

import { el, link, listen, lost, name, openLive, post, put } from "./link.js";
import * as live from "./live.js";
import { otherLanguage, say } from "./words.js";

const PAGES = { live: async () => live, attempts: () => import("./attempts.js"), progress: () => import("./progress.js"), health: () => import("./health.js") };
const $ = (id) => document.getElementById(id);
let shown = null, shownName = "", opening = 0;

async function open() {
  const wanted = location.hash.slice(1).split("/")[0], pageName = wanted in PAGES ? wanted : "live";
  const mine = ++opening, module = await PAGES[pageName]();
  if (mine !== opening || !link.about) return;
  if (shown) shown.close();
  $("page").replaceChildren();
  shownName = pageName;
  shown = module.page($("page"), location.hash.slice(1).split("/").slice(1).map(decodeURIComponent));
  for (const tab of $("tabs").children) tab.toggleAttribute("aria-current", tab.dataset.page === pageName);
  for (const tab of $("tabs").children) if (tab.dataset.page === pageName) tab.setAttribute("aria-current", "page");
}

function frame() {
  const pages = Object.keys(PAGES).filter((page) => link.archive || page === "live" || page === "health");
  $("tabs").replaceChildren(...pages.map((page) => el("button", { type: "button", "data-page": page, onclick: () => { location.hash = page; } }, say(page))));
  $("hold").replaceChildren(say("hold"), el("kbd", "x"));
  $("estop").replaceChildren(say("estop"), el("kbd", "e"));
  put($("language"), say("language"));
  $("who").placeholder = say("your_name");
  $("who").title = say("your_name");
}

function control() {
  const now = link.state?.control;
  if (!now) return;
  const mine = now.holder === link.you;
  const text = now.holder === null ? say("nobody_controls") : mine ? say("you_control") : `${say("controls", now.holder_name)} ${now.holder_silent ? say("silent") : ""}`;
  const button = mine ? el("button", { type: "button", id: "give", title: say("give_control"), onclick: () => post("/api/control/give").then(answered) }, say("give_control"))
    : el("button", { type: "button", id: "take", onclick: () => post("/api/control/take").then(answered) }, say(now.holder === null ? "take_control" : "ask_control"));
  const people = now.people.length < 2 ? "" : el("span", { title: now.people.map((person) => person.name).join(", ") }, `· ${say("watching", now.people.length)}`);
  const key = JSON.stringify([text, mine, now.people, document.documentElement.lang]);
  if ($("control").dataset.key === key) return; // a button that is being pressed stays the same one
  $("control").dataset.key = key;
  $("control").replaceChildren(el("b", text), people, button);
}

function banner() {
  const bar = $("banner"), now = link.state?.control;
  let text = "", alarm = false, buttons = [];
  if (lost()) { text = say("lost"); alarm = true; }
  else if (now?.lost) { text = say("lost_takeover", now.lost); alarm = true; }
  else if (now?.asker && now.holder === link.you) {
    text = say("asks", now.asker_name, now.asked_left_s.toFixed(0));
    buttons = [["give", "give"], ["refuse", "refuse"]];
  } else if (document.hidden) text = say("background");
  else if (!document.hasFocus()) text = say("no_focus");
  bar.hidden = !text;
  bar.className = alarm ? "alarm" : "";
  const key = `${text.replace(/\d+/g, "")}${buttons.length}`;
  if (bar.dataset.key !== key) {
    bar.dataset.key = key;
    bar.replaceChildren(el("span", text), ...buttons.map(([word, wish]) => el("button", { type: "button", id: `answer-${wish}`, onclick: () => post(`/api/control/${wish}`).then(answered) }, say(word))));
  } else if (text) put(bar.firstChild, text);
  document.title = lost() ? `✖ ${say("lost").split(/[:：]/)[0]}` : document.hidden ? `⚠ ${say("background")}` : `RECAP · ${say(link.state?.cell?.mode.name || "NONE")}`;
}

let mine = 0; // an own answer is shown for a while, before what others are told
function answered(answer) { mine = performance.now(); put($("said"), answer.text || ""); $("said").classList.toggle("bad", !answer.ok); }
function said() {
  const last = link.state?.said[link.state.said.length - 1];
  if (!last || performance.now() - mine < 3000) return;
  put($("said"), `${last.who}: ${last.text}`);
  $("said").classList.toggle("bad", !last.good);
}

const stop = () => post("/api/do/stop").then(answered);
const estop = () => post("/api/do/estop").then(answered);

addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const typing = event.target instanceof HTMLInputElement && event.target.type !== "range";
  if (typing) { if (key === "Escape" || key === "Enter") event.target.blur(); return; }
  if (key === "e") { estop(); event.preventDefault(); return; }
  if (key === "x") { stop(); event.preventDefault(); return; }
  const does = shownName === "live" ? live.KEYS[key] : shown?.keys?.[key];
  if (!does) return;
  event.preventDefault();
  if (document.activeElement instanceof HTMLButtonElement) document.activeElement.blur(); // a space bar presses no button twice
  does(event);
});

$("hold").onclick = stop;
$("estop").onclick = estop;
$("language").onclick = () => { otherLanguage(); delete $("control").dataset.key; frame(); open(); };
$("who").value = name();
$("who").onchange = () => { localStorage.setItem("name", $("who").value.trim()); post("/api/control/name", { name: $("who").value.trim() }); };
addEventListener("hashchange", open);
addEventListener("visibilitychange", banner);
setInterval(banner, 100);

let first = true;
listen((what) => {
  if (what === "hello") { frame(); open().then(() => { if (first) { first = false; performance.mark("interactive"); } }); }
  if (what === "state") { control(); said(); banner(); if (shown?.state) shown.state(); }
});
frame();
openLive();
