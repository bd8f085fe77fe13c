// Charts in SVG: lines, bands and points with error bars, on axes that fit their room.

import { fill, freshId, h, s, say } from "./dom.js";
import { num } from "./format.js";
import { reach, scaled, tickName } from "./scale.js";

/** How much larger than usual text is on this screen: charts grow with it. */
const growth = parseFloat(getComputedStyle(document.documentElement).fontSize) / 16;
const MARGIN = { top: 12 * growth, right: 24 * growth, bottom: 32 * growth, left: 56 * growth };

/**
 * A chart. `about`: {title, x, xKind, yKind, height, yFrom0, xReach, yReach, none: what to say of no points}.
 * draw({series, rules, xReach}) with series [{name, shade, dash, points: [{x, y, low, high}], kind}] where kind is
 * "line" (with a band where low and high are there) or "marks" (joined, with error bars);
 * rules [{y, name}] are horizontal lines. mark(x, other) sets a vertical marker and a fainter one; null takes one away.
 */
export function chart(about) {
  const svg = s("svg", { class: "chart-svg", role: "img" });
  const readout = h("span", { class: "chart-readout" });
  const legend = h("div", { class: "legend" });
  const title = h("figcaption", { class: "chart-title" }, h("span", null, about.title), readout);
  const none = h("p", { class: "quiet" }, about.none ?? "Nothing yet.");
  const element = h("figure", { class: "chart chart-none" }, title, none, svg, legend);
  const room = { width: 0, height: (about.height ?? 200) * growth };
  const held = { series: [], rules: [], marker: null, other: null, frame: null };

  const paint = () => {
    if (room.width > 0) held.frame = painted(svg, about, room, held);
    placeMarker(held);
  };
  const observer = new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width === room.width) return;
    room.width = width;
    paint();
  });
  observer.observe(element);
  svg.addEventListener("pointermove", (event) => say(readout, readAt(svg, held, about, event.offsetX)));
  svg.addEventListener("pointerleave", () => say(readout, ""));
  return {
    element,
    draw({ series, rules = [], xReach = about.xReach }) {
      Object.assign(held, { series, rules, xReach });
      none.hidden = series.some((one) => one.points.some((p) => p.y !== null && Number.isFinite(p.y)));
      element.classList.toggle("chart-none", !none.hidden);
      svg.setAttribute("aria-label", inWords(about, held));
      fill(legend, series.length > 1 || rules.length ? keys(series, rules) : null);
      paint();
    },
    mark(x, other = null) {
      Object.assign(held, { marker: x, other });
      placeMarker(held);
    },
  };
}

function painted(svg, about, { width, height }, { series, rules, xReach }) {
  const all = series.flatMap((one) => one.points);
  const xKind = about.xKind ?? "linear";
  const yKind = about.yKind ?? "linear";
  const yValues = all.flatMap((p) => [p.y, p.low, p.high]).concat(rules.map((rule) => rule.y), about.yFrom0 ? [0] : []);
  const yReach = about.yReach ?? roomy(reach(yValues, yKind), yKind, about.yFrom0);
  const x = scaled(xKind, xReach ?? reach(all.map((p) => p.x), xKind), [MARGIN.left, width - MARGIN.right], Math.max(2, Math.floor(width / 110 / growth)));
  const y = scaled(yKind, yReach, [height - MARGIN.bottom, MARGIN.top], Math.max(2, Math.floor(height / 45 / growth)));
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("height", height);
  const clip = freshId("clip");
  const marker = s("g", { class: "marker" });
  fill(
    svg,
    s("clipPath", { id: clip }, s("rect", { x: MARGIN.left - 6, y: 0, width: Math.max(0, width - MARGIN.left - MARGIN.right + 12), height: height - MARGIN.bottom + 6 })),
    grid(x, y, width, height),
    names(about, width, height),
    s("g", { "clip-path": `url(#${clip})` }, rules.map((rule) => ruler(rule, y, width)), series.map((one) => drawn(one, x, y, yKind))),
    marker,
  );
  return { x, y, marker, width, height, series };
}

function roomy([low, high], kind, from0) {
  if (kind !== "linear") return [low, high];
  const more = (high - low) * 0.06;
  return [from0 && low >= 0 ? 0 : low - more, high + more];
}

function grid(x, y, width, height) {
  const foot = height - MARGIN.bottom;
  return s(
    "g",
    { class: "grid" },
    y.ticks.map((value) => [
      s("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y.at(value), y2: y.at(value) }),
      s("text", { x: MARGIN.left - 8, y: y.at(value) + 4, "text-anchor": "end" }, tickName(value)),
    ]),
    x.ticks.map((value) => [
      s("line", { class: "tick", x1: x.at(value), x2: x.at(value), y1: foot, y2: foot + 4 }),
      s("text", { x: x.at(value), y: foot + 17 * growth, "text-anchor": "middle" }, tickName(value)),
    ]),
    s("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: foot, y2: foot }),
  );
}

function names(about, width, height) {
  return about.x ? s("text", { class: "axis-name", x: width - MARGIN.right, y: height - 2, "text-anchor": "end" }, about.x) : null;
}

function ruler(rule, y, width) {
  if (!Number.isFinite(rule.y)) return null;
  return s("line", { class: "rule", x1: MARGIN.left, x2: width - MARGIN.right, y1: y.at(rule.y), y2: y.at(rule.y) });
}

function drawn(one, x, y, yKind) {
  const points = one.points.filter((p) => Number.isFinite(p.y) && p.y !== null && (yKind === "linear" || p.y > 0));
  const banded = points.filter((p) => Number.isFinite(p.low) && Number.isFinite(p.high) && p.low !== null && p.high !== null);
  const shade = `series series-${one.shade ?? 0}${one.dash ? ` dash-${one.dash}` : ""}`;
  const foot = (low) => y.at(yKind === "linear" ? low : Math.max(low, 1e-12));
  const bars = one.kind === "marks" || banded.length < 2;
  return s(
    "g",
    { class: shade },
    !bars && s("path", { class: "band", d: bandOf(banded, x, y, foot) }),
    bars && banded.map((p) => errorBar(x.at(p.x), foot(p.low), y.at(p.high))),
    s("path", { class: "line", d: lineOf(points, x, y) }),
    (one.kind === "marks" || points.length === 1) && points.map((p) => s("circle", { cx: x.at(p.x), cy: y.at(p.y), r: 3.5 })),
  );
}

const point = (x, y) => `${x.toFixed(1)},${y.toFixed(1)}`;

function lineOf(points, x, y) {
  return points.length ? `M${points.map((p) => point(x.at(p.x), y.at(p.y))).join("L")}` : "";
}

function bandOf(points, x, y, foot) {
  const over = points.map((p) => point(x.at(p.x), y.at(p.high)));
  const under = points.map((p) => point(x.at(p.x), foot(p.low))).reverse();
  return `M${[...over, ...under].join("L")}Z`;
}

function errorBar(x, low, high) {
  return s("path", { class: "whisker", d: `M${point(x, low)}V${high.toFixed(1)}M${point(x - 4, low)}h8M${point(x - 4, high)}h8` });
}

function placeMarker({ frame, marker, other }) {
  if (!frame) return;
  const line = (x, kind) => s("line", { class: kind, x1: x, x2: x, y1: MARGIN.top, y2: frame.height - MARGIN.bottom });
  const faint = Number.isFinite(other) && other !== null && line(frame.x.at(other), "faint");
  if (marker === null || marker === undefined) {
    fill(frame.marker, faint);
    return;
  }
  const at = frame.x.at(marker);
  const dots = frame.series.map((one) => {
    const y = between(one.points, marker);
    return y === null ? null : s("circle", { class: `dot series-${one.shade ?? 0}`, cx: at, cy: frame.y.at(y), r: 4.5 });
  });
  fill(frame.marker, faint, line(at), dots);
}

/** The value of a line at an x between its points. */
export function between(points, x) {
  const known = points.filter((p) => p.y !== null && Number.isFinite(p.y));
  const after = known.findIndex((p) => p.x >= x);
  if (after < 0) return null;
  const b = known[after];
  if (after === 0) return b.x === x ? b.y : null;
  const a = known[after - 1];
  return a.y + ((b.y - a.y) * (x - a.x)) / (b.x - a.x);
}

function readAt(svg, { frame }, about, offset) {
  if (!frame) return "";
  let best = null;
  for (const one of frame.series) {
    for (const p of one.points) {
      const away = Math.abs(frame.x.at(p.x) - offset);
      if (p.y !== null && (best === null || away < best.away)) best = { away, p };
    }
  }
  if (best === null) return "";
  const values = frame.series
    .map((one) => [one.name, one.points.find((p) => p.x === best.p.x)])
    .filter(([, p]) => p)
    .map(([name, p]) => `${frame.series.length > 1 ? `${name} ` : ""}${withEnds(p)}`);
  return `${about.x ?? "x"} ${num(best.p.x, 6)}: ${values.join(", ")}`;
}

const withEnds = (p) => num(p.y, 4) + (Number.isFinite(p.low) && p.low !== null ? ` (${num(p.low)} to ${num(p.high)})` : "");

function keys(series, rules) {
  return [
    series.map((one) =>
      h("span", { class: "key" }, s("svg", { class: `swatch series series-${one.shade ?? 0}${one.dash ? ` dash-${one.dash}` : ""}`, viewBox: "0 0 24 8", "aria-hidden": "true" }, s("path", { class: "line", d: "M0,4H24" })), one.label ? one.label() : one.name),
    ),
    rules.map((rule) =>
      h("span", { class: "key" }, s("svg", { class: "swatch", viewBox: "0 0 24 8", "aria-hidden": "true" }, s("path", { class: "rule", d: "M0,4H24" })), rule.name),
    ),
  ];
}

function inWords(about, { series }) {
  const said = series.map((one) => {
    const known = one.points.filter((p) => p.y !== null && Number.isFinite(p.y));
    if (!known.length) return `${one.name}: nothing yet`;
    const last = known[known.length - 1];
    return `${one.name}: from ${num(known[0].y)} at ${num(known[0].x, 6)} to ${withEnds(last)} at ${num(last.x, 6)}`;
  });
  return `${about.title}${about.x ? ` by ${about.x}` : ""}. ${said.join("; ") || "Nothing yet"}.`;
}

/** A small interval on an axis that a column of them shares, with a floor: for tables. */
export function intervalBar({ value, low, high, floor }, [from, to]) {
  const x = scaled("linear", [from, to], [6, 114]);
  const mid = 8;
  return s(
    "svg",
    { class: "interval series series-0", viewBox: "0 0 120 16", width: 120, height: 16, "aria-hidden": "true" },
    s("line", { class: "track", x1: 2, x2: 118, y1: mid, y2: mid }),
    Number.isFinite(floor) && floor !== null && s("path", { class: "floor", d: `M${x.at(floor).toFixed(1)},1V15` }),
    low !== null && high !== null && Number.isFinite(low) && s("path", { class: "whisker", d: `M${point(x.at(low), mid)}H${x.at(high).toFixed(1)}M${point(x.at(low), mid - 4)}v8M${point(x.at(high), mid - 4)}v8` }),
    value !== null && s("circle", { cx: x.at(value), cy: mid, r: 3.5 }),
  );
}
