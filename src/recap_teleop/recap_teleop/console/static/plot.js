// Small plots on canvases: 50 Hz signals, the value curve, and the tracks of a recorded attempt.

export const COLORS = { ink: "#14181c", muted: "#55606a", line: "#c9d1d8", blue: "#0072b2", green: "#009e73", orange: "#e69f00", red: "#d55e00", purple: "#8a4f9e" };
export const LINES = ["#0072b2", "#d55e00", "#009e73", "#8a4f9e", "#8c6d00", "#14181c", "#56b4e9", "#b0004e"];

export function prepare(canvas) {
  const ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  const w = Math.round(width * ratio), h = Math.round(height * ratio);
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = "11px system-ui, sans-serif";
  pen.lineWidth = 1.6;
  pen.lineJoin = "round";
  return { pen, width, height };
}

// Commanded as lines, measured as dots, over the last `span` seconds. joints: indices; names: their labels.
export function drawJoints(canvas, link, joints, names, span, now) {
  const { pen, width, height } = prepare(canvas);
  if (!link.rows || !width) return;
  const dof = (link.columns - 3) / 2, size = link.times.length, from = now - span;
  let low = Infinity, high = -Infinity, begin = link.count;
  while (begin > link.first && link.times[(begin - 1) % size] > from) begin--;
  for (let n = begin; n < link.count; n++) for (const joint of joints) {
    const value = link.rows[(n % size) * link.columns + 3 + joint];
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (!(high >= low)) return;
  const room = Math.max(high - low, 0.2) * 0.08, middle = (high + low) / 2, half = Math.max(high - low, 0.2) / 2 + room;
  const left = 30, x = (time) => left + (width - left - 2) * (time - from) / span, y = (value) => height - 4 - (height - 8) * (value - middle + half) / (2 * half);
  pen.strokeStyle = COLORS.line; pen.fillStyle = COLORS.muted; pen.lineWidth = 1;
  for (const value of [middle - half + room, middle, middle + half - room]) {
    pen.beginPath(); pen.moveTo(left, y(value)); pen.lineTo(width, y(value)); pen.stroke();
    pen.fillText(value.toFixed(1), 2, Math.min(height - 2, Math.max(10, y(value) + 4)));
  }
  pen.lineWidth = 1.6;
  joints.forEach((joint, k) => {
    pen.strokeStyle = pen.fillStyle = LINES[k % LINES.length];
    pen.beginPath();
    let before = -1;
    for (let n = begin; n < link.count; n++) {
      const at = n % size, time = link.times[at], value = link.rows[at * link.columns + 3 + joint];
      if (time - before > 0.5) pen.moveTo(x(time), y(value)); else pen.lineTo(x(time), y(value));
      before = time;
    }
    pen.stroke();
    for (let n = begin + ((10 - (begin % 10)) % 10); n < link.count; n += 10) {
      const at = n % size, value = link.rows[at * link.columns + 3 + dof + joint];
      if (!Number.isNaN(value)) pen.fillRect(x(link.times[at]) - 1.5, y(value) - 1.5, 3, 3);
    }
  });
  let at = left + 4;
  joints.forEach((_, k) => { // which is which
    pen.fillStyle = LINES[k % LINES.length];
    const label = names[k];
    if (at + pen.measureText(label).width > width) return;
    pen.fillText(label, at, 10);
    at += pen.measureText(label).width + 8;
  });
}

// Whether the value rises (1), falls (-1) or wavers (0) around each point: as the report judges it, on the
// change over one second; more than half the pace of an attempt that goes as expected counts.
export function trends(points, pace) {
  let a = 0, b = 0;
  return points.map(([time], i) => {
    while (points[a][0] < time - 0.5) a++;
    while (b + 1 < points.length && points[b + 1][0] <= time + 0.5) b++;
    if (b < i) b = i;
    const span = points[b][0] - points[a][0], slope = span > 0 ? (points[b][1] - points[a][1]) / span : 0;
    return slope > 0.5 * pace ? 1 : slope < -0.5 * pace ? -1 : 0;
  });
}
export const TREND = { 1: COLORS.green, 0: COLORS.orange, [-1]: COLORS.red };
const WIDTH = { 1: 3, 0: 2.2, [-1]: 3.6 }; // not by colour alone: what falls is the thickest

export function drawValue(pen, points, pace, x, y) {
  const trend = trends(points, pace);
  for (let i = 1; i < points.length; i++) {
    if (points[i][0] - points[i - 1][0] > 1.5) continue;
    pen.strokeStyle = TREND[trend[i]]; pen.lineWidth = WIDTH[trend[i]];
    pen.beginPath(); pen.moveTo(x(points[i - 1][0]), y(points[i - 1][1])); pen.lineTo(x(points[i][0]), y(points[i][1])); pen.stroke();
  }
  return trend;
}

export function drawLiveValue(canvas, points, pace, begin, limit, now, nothing) {
  const { pen, width, height } = prepare(canvas);
  if (!width) return;
  const left = 30, span = Math.max(limit || 20, now - begin), y = (value) => 6 + (height - 20) * -Math.max(-1, Math.min(0.02, value));
  const x = (time) => left + (width - left - 4) * (time - begin) / span;
  pen.fillStyle = COLORS.muted; pen.strokeStyle = COLORS.line; pen.lineWidth = 1;
  for (const value of [0, -0.5, -1]) {
    pen.beginPath(); pen.moveTo(left, y(value)); pen.lineTo(width, y(value)); pen.stroke();
    pen.fillText(value.toFixed(1), 2, y(value) + 4);
  }
  const every = [5, 10, 20, 30, 60, 120, 300, 600].find((one) => span / one <= 7) || 1800;
  for (let t = 0; t <= span; t += every) if (x(begin + t) < width - 24) pen.fillText(`${t} s`, x(begin + t), height - 2);
  if (!points.length) { pen.font = "14px system-ui, sans-serif"; pen.fillText(nothing, left + 12, height / 2); return; }
  drawValue(pen, points.filter(([time]) => time >= begin), pace, x, y);
}

// Axes of the Progress page's pictures, from `low` to `high` → where a value lies.
function axes(pen, width, height, low, high, share) {
  const left = 44, y = (v) => height - 24 - (height - 34) * (v - low) / (high - low || 1);
  pen.strokeStyle = COLORS.line; pen.fillStyle = COLORS.muted; pen.lineWidth = 1;
  for (const v of [low, (low + high) / 2, high]) {
    pen.beginPath(); pen.moveTo(left, y(v)); pen.lineTo(width, y(v)); pen.stroke();
    pen.fillText(share ? `${Math.round(100 * v)} %` : Math.abs(v) >= 100 ? v.toFixed(0) : v.toPrecision(3), 2, y(v) + 4);
  }
  return { left, y };
}

// Values with their 95 % intervals. groups: [{points: [{x, y, low, high}], color, open}]; labels: of x = 0, 1, …
export function drawIntervals(canvas, groups, labels, share) {
  const { pen, width, height } = prepare(canvas);
  const all = groups.flatMap((group) => group.points.flatMap((p) => [p.y, p.low, p.high])).filter(Number.isFinite);
  if (!width) return;
  const { left, y } = axes(pen, width, height, 0, share ? 1 : Math.max(1e-9, ...all) * 1.05 || 1, share);
  const room = (width - left - 8) / labels.length, x = (k) => left + room * (k + 0.5);
  pen.textAlign = "center";
  const every = Math.ceil(labels.length * 26 / (width - left));
  labels.forEach((label, k) => { if (k % every === 0) pen.fillText(label, x(k), height - 4); });
  pen.textAlign = "left";
  pen.lineWidth = 2;
  groups.forEach((group, g) => group.points.forEach((p) => {
    const at = x(p.x) + (g - (groups.length - 1) / 2) * Math.min(14, room / 3);
    pen.strokeStyle = pen.fillStyle = group.color;
    if (Number.isFinite(p.low) && Number.isFinite(p.high)) for (const [x0, y0, x1, y1] of [[at, p.low, at, p.high], [at - 4, p.low, at + 4, p.low], [at - 4, p.high, at + 4, p.high]]) { pen.beginPath(); pen.moveTo(x0, y(y0)); pen.lineTo(x1, y(y1)); pen.stroke(); }
    pen.beginPath();
    if (group.open) { pen.moveTo(at, y(p.y) - 6); pen.lineTo(at + 5, y(p.y)); pen.lineTo(at, y(p.y) + 6); pen.lineTo(at - 5, y(p.y)); pen.closePath(); pen.fillStyle = "#fff"; pen.fill(); pen.stroke(); } else { pen.arc(at, y(p.y), 5, 0, 7); pen.fill(); }
  }));
}

// Training curves. series: [{x: [], y: []}], in the colours of LINES.
export function drawCurves(canvas, series) {
  const { pen, width, height } = prepare(canvas);
  const all = series.flatMap((one) => one.y).filter(Number.isFinite), xs = series.flatMap((one) => one.x);
  if (!all.length || !width) return;
  const { left, y } = axes(pen, width, height, Math.min(0, ...all), Math.max(...all) * 1.05 || 1, false);
  const x0 = Math.min(...xs), x1 = Math.max(...xs), x = (v) => left + 2 + (width - left - 6) * (v - x0) / (x1 - x0 || 1);
  pen.fillText(String(x0), left, height - 4);
  pen.textAlign = "right"; pen.fillText(String(x1), width - 2, height - 4); pen.textAlign = "left";
  series.forEach((one, k) => {
    pen.strokeStyle = LINES[k % LINES.length]; pen.lineWidth = 1.8;
    pen.beginPath();
    one.x.forEach((v, i) => { if (Number.isFinite(one.y[i])) pen.lineTo(x(v), y(one.y[i])); });
    pen.stroke();
  });
}
