// The connection to the console: state and samples by one websocket, pictures by another, wishes by POST.

const STALE_MS = 700; // a console that is silent for this long is lost
const RETRY_MS = 300;
const SAMPLES = 1024; // the last 20 s at 50 Hz

export const link = {
  about: null, you: 0, key: "", archive: false, state: null, heard: -1e9,
  values: [], // [seconds, value] of the attempt
  offset: 0, // browser's seconds less the console's
  times: new Float64Array(SAMPLES), rows: null, columns: 0, first: 0, count: 0,
};
const listeners = new Set();
let live = null;
let episode = "";

export function listen(listener) { listeners.add(listener); return () => listeners.delete(listener); }
function tell(what) { for (const listener of listeners) listener(what); }

export const seconds = () => performance.now() / 1000 - link.offset;
export const lost = () => performance.now() - link.heard > STALE_MS;
export const name = () => localStorage.getItem("name") || "";

export function openLive() {
  live = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live?name=${encodeURIComponent(name())}`);
  live.binaryType = "arraybuffer";
  live.onmessage = ({ data }) => {
    link.heard = performance.now();
    if (typeof data === "string") {
      const message = JSON.parse(data);
      if (message.type === "hello") hello(message);
      else { link.state = message; noteEpisode(message); live.send("state"); }
      tell(message.type);
    } else { samples(data); live.send("samples"); }
  };
  live.onclose = () => { tell("closed"); setTimeout(openLive, RETRY_MS); };
}

function hello(message) {
  Object.assign(link, { you: message.you, key: message.key, about: message.about, archive: message.archive, values: message.values });
  link.offset = performance.now() / 1000 - message.now_s;
  link.first = link.count = 0;
}

function noteEpisode(state) {
  const now = state.cell ? state.cell.episode.id : "";
  if (now !== episode) { if (episode) link.values = []; episode = now; }
}

// 24 bytes: kind, first sample's number, samples, columns, time of the first; then float32 rows.
function samples(buffer) {
  const view = new DataView(buffer);
  const first = view.getUint32(4, true), count = view.getUint32(8, true), columns = view.getUint32(12, true);
  const start = view.getFloat64(16, true), rows = new Float32Array(buffer, 24);
  if (columns !== link.columns) { link.columns = columns; link.rows = new Float32Array(SAMPLES * columns); link.first = link.count = first; }
  if (first !== link.count) link.first = link.count = first; // what was left out is not joined by a line
  for (let i = 0; i < count; i++) {
    const at = (first + i) % SAMPLES, time = start + rows[i * columns], value = rows[i * columns + 2];
    link.times[at] = time;
    link.rows.set(rows.subarray(i * columns, (i + 1) * columns), at * columns);
    const last = link.values[link.values.length - 1];
    if (!Number.isNaN(value) && (!last || (time > last[0] && (value !== last[1] || time - last[0] > 0.1)))) link.values.push([time, value]);
  }
  link.count = first + count;
  link.first = Math.max(link.first, link.count - SAMPLES);
}

// Pictures: each camera is asked for its next one when the last has been drawn.
export function openCameras(canvases, drawn) {
  let closed = false, socket = null;
  const open = () => {
    socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/cameras`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => canvases.forEach((_, camera) => socket.send(String(camera)));
    socket.onmessage = async ({ data }) => {
      const view = new DataView(data), camera = view.getUint8(1), age = view.getFloat64(8, true);
      try {
        const bitmap = await createImageBitmap(new Blob([new Uint8Array(data, 16)], { type: "image/jpeg" }));
        const canvas = canvases[camera];
        if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) { canvas.width = bitmap.width; canvas.height = bitmap.height; }
        canvas.getContext("2d").drawImage(bitmap, 0, 0);
        bitmap.close();
        drawn(camera, age);
      } catch { drawn(camera, Infinity); } // not a picture: said, and the next one asked for
      if (socket.readyState === 1) socket.send(String(camera));
    };
    socket.onclose = () => { if (!closed) setTimeout(open, RETRY_MS); };
  };
  open();
  return () => { closed = true; socket.close(); };
}

export async function post(path, body = {}) {
  const headers = { "content-type": "application/json", "x-recap-key": link.key };
  try {
    const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), keepalive: true });
    return await answer.json();
  } catch (error) {
    return { ok: false, text: String(error) };
  }
}

export async function get(path) {
  const answer = await fetch(path);
  const result = await answer.json();
  if (!answer.ok) throw new Error(result.text || answer.statusText);
  return result;
}

// Small pieces of a page: el("div.card", {title: "…"}, child, "text").
export function el(what, ...children) {
  const [tag, ...classes] = what.split(".");
  const element = document.createElement(tag || "div");
  if (classes.length) element.className = classes.join(" ");
  for (const child of children) {
    if (child === null || child === undefined) continue;
    if (typeof child === "object" && !(child instanceof Node)) {
      for (const [key, value] of Object.entries(child)) {
        if (key.startsWith("on")) element[key] = value;
        else if (key === "style") element.style.cssText = value; // the page allows no inline styles
        else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value === true ? "" : value);
      }
    } else element.append(child);
  }
  return element;
}

export function put(element, text) { if (element.textContent !== text) element.textContent = text; }
