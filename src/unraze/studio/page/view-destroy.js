// Destroy and Reconstruct: the text's two directions, to be moved by hand.

import { get, post } from "./api.js";
import { between, chart } from "./charts.js";
import { h, on, say } from "./dom.js";
import { fixed, num } from "./format.js";
import { slider, words } from "./controls.js";
import { imagePart, keepRef, refOf } from "./destroy-images.js";
import { walkPart } from "./destroy-walk.js";
import { latest } from "./latest.js";
import { circle, destroying, inline, sym } from "./math.js";
import { ofRun } from "./of-run.js";
import { note } from "./router.js";
import { canvasOf, cut, picture, resize } from "./sprites.js";
import { about } from "./store.js";

const CURVES = [
  { key: "alpha_bar", name: "\u1fb1_t, signal", symbol: sym.alphaBar, what: "signal", shade: 0 },
  { key: "beta_bar", name: "\u03b2\u0304_t, noise", symbol: sym.betaBar, what: "noise", shade: 1 },
  { key: "alpha", name: "\u03b1_t, of a step", symbol: sym.alpha, what: "signal of a step", shade: 0, dash: "long" },
  { key: "beta", name: "\u03b2_t, of a step", symbol: sym.beta, what: "noise of a step", shade: 1, dash: "long" },
];

export function showDestroy(place) {
  ofRun(place, "destroy", "Destroy and Reconstruct", async (run, part) => {
    const [here, schedule] = await Promise.all([about(), get(`/runs/${run.id}/schedule`, place.signal)]);
    build(run, here, schedule, part, place);
  });
}

function build(run, here, schedule, part, { query, signal, root }) {
  const last = schedule.T ?? run.T;
  const state = {
    image: refOf(query),
    t: Math.min(last, Number(query.get("t") ?? Math.round(last * 0.3))),
    seed: Number(query.get("seed") ?? 0),
    label: query.has("class") ? Number(query.get("class")) : null,
  };
  const said = words();
  const room = () => part.clientWidth || 900;
  const isWide = () => window.innerWidth > 1100;
  const wanted = () => Math.max(40, Math.min(448, isWide() ? (room() - 240) / 5 : (room() - 74) / 3));
  const wantedOfTwo = () => (isWide() ? wanted() : Math.max(40, Math.min(280, (room() - 56) / 2)));
  const shown = momentPart(run, wanted());
  const curves = schedulePart(schedule);
  const line = slider("t", { min: 0, max: last, step: 1, value: state.t, label: "t, the step of destruction", shown: (t) => `${num(t, 4)} of ${num(last, 4)}`, oninput: (t) => { state.t = t; moved(); } });
  const walk = walkPart(run, here, query, { start: () => state, at: (t) => curves.mark(state.t, t), kept: () => note(query), signal, wanted: wantedOfTwo });
  const image = imagePart(run, state, { changed: moved, signal, root, limit: here.limits.upload_bytes });
  const ask = latest(
    ({ image: ref, t, seed, label }) => post(`/runs/${run.id}/destroy`, { image: ref, t, seed, class: label }, signal).then(async (told) => ({ told, sprite: await picture(told.sprite, signal) })),
    ({ told, sprite }) => { said.say(""); shown.draw(told, sprite); },
    (error) => said.fail(error),
  );

  function moved() {
    keepState();
    shown.values(curves.at(state.t));
    curves.mark(state.t);
    walk.moved();
    ask({ ...state });
  }

  function keepState() {
    keepRef(query, state.image);
    for (const [key, value] of [["t", state.t], ["seed", state.seed || ""], ["class", state.label ?? ""]]) {
      if (value === "") query.delete(key);
      else query.set(key, value);
    }
    note(query);
  }

  part.append(
    image,
    h("section", { class: "panel stack" },
      h("h2", null, "Destroy"),
      h("p", { class: "lead" }, "After t steps there is so much of the picture, and so much noise; the squares of the two amounts add up to one."),
      h("div", { class: "t-line" }, line.element, sweep(line, last, state, moved, signal)),
      said.element,
      h("div", { class: "moment" }, shown.equation, shown.estimates),
      h("div", { class: "destroy-split" }, shown.formulas, curves.element)),
    walk.element,
  );
  on(window, "resize", () => { shown.resize(wanted(), wantedOfTwo()); walk.resized(); }, signal);
  shown.resize(wanted(), wantedOfTwo());
  walk.resized();
  moved();
}

/** A button that lets t run from where it is to T, then from 0: to watch it, hands free. */
function sweep(line, last, state, moved, signal) {
  let running = false;
  let exact = 0;
  const play = h("button", { type: "button", class: "small" }, "Play");
  const halt = () => {
    running = false;
    say(play, "Play");
  };
  const tick = (before) => (now) => {
    if (!running || signal.aborted) return;
    exact = Math.min(last, exact + (last * (now - before)) / 8000);
    line.value = state.t = Math.round(exact);
    moved();
    if (exact >= last) halt();
    else requestAnimationFrame(tick(now));
  };
  play.addEventListener("click", () => {
    if (running) return halt();
    running = true;
    say(play, "Pause");
    exact = state.t >= last ? 0 : state.t;
    requestAnimationFrame((now) => requestAnimationFrame(tick(now)));
  });
  line.input.addEventListener("pointerdown", halt);
  line.input.addEventListener("keydown", halt);
  return play;
}

/** The five pictures of a moment, in the equation that they make, and the formulas. */
function momentPart(run, wanted) {
  const names = [
    ["the picture", sym.x0],
    ["what is left of it", sym.xt],
    ["the noise in it", sym.eps],
    ["the picture in it, by the network", sym.x0Hat],
    ["the noise in it, by the network", sym.epsHat],
  ];
  const canvases = names.map(([name]) => canvasOf(run.shape, wanted, name));
  const errors = [h("span", { class: "number" }), h("span", { class: "number" })];
  const [x0, xt, eps, x0Hat, epsHat] = names.map(([name, symbol], k) => h("figure", null, canvases[k], h("figcaption", null, inline(symbol), h("span", { class: "quiet" }, name), k > 2 && h("span", { class: "quiet" }, "mean squared error ", errors[k - 3]))));
  const amounts = ["signal", "noise"].map((of) => h("span", { class: `amount of-${of}` }));
  const snr = h("span", { class: "number" });
  const [whole, unit] = [destroying(), circle()];
  const sign = (text) => h("span", { class: "sign", "aria-hidden": "true" }, text);
  return {
    equation: h("div", { class: "equation" }, h("div", { class: "term" }, h("span", { class: "amount" }), xt), sign("="), h("div", { class: "term" }, amounts[0], x0), sign("+"), h("div", { class: "term" }, amounts[1], eps)),
    formulas: h("div", { class: "formulas" }, whole.element, unit.element, h("p", { class: "quiet" }, "Signal to noise: ", snr)),
    estimates: h("div", { class: "estimates" }, h("h3", null, "What the network says of ", inline(sym.xt), " alone"), h("div", { class: "pictures" }, x0Hat, epsHat)),
    values(now) {
      whole.update(now);
      unit.update(now);
      say(amounts[0], `${fixed(now.alpha_bar)} \u00d7`);
      say(amounts[1], `${fixed(now.beta_bar)} \u00d7`);
      say(snr, now.beta_bar ? num(now.alpha_bar / now.beta_bar) : "without end: there is no noise");
    },
    draw(told, sprite) {
      canvases.forEach((canvas, number) => cut(canvas, sprite, 5, number));
      say(errors[0], told.error ? num(told.error.x0) : "\u2013");
      say(errors[1], told.error ? num(told.error.eps) : "\u2013");
    },
    resize: (to, ofTwo) => canvases.forEach((canvas, k) => resize(canvas, k < 3 ? to : ofTwo)),
  };
}

/** The schedule's curves, with a marker at t, and its values there. */
function schedulePart(schedule) {
  const shown = chart({ title: "The schedule", x: "t", height: 280, yReach: [0, 1.02], xReach: [0, schedule.T] });
  const series = CURVES.map(({ key, name, symbol, what, shade, dash }) => ({
    name,
    shade,
    dash,
    label: () => [inline(symbol), ` ${what}`],
    kind: "line",
    points: schedule.t.map((x, k) => ({ x, y: schedule[key][k] })),
  }));
  shown.draw({ series });
  const now = h("dl", { class: "facts facts-small" });
  const outs = CURVES.map(({ symbol }) => {
    const out = h("dd", { class: "number" });
    now.append(h("div", null, h("dt", null, inline(symbol)), out));
    return out;
  });
  return {
    element: h("div", { class: "stack" }, shown.element, now),
    at(t) {
      return Object.fromEntries(CURVES.map(({ key }, k) => [key, between(series[k].points, t)]));
    },
    mark(t, walked) {
      shown.mark(t, walked);
      CURVES.forEach((_, k) => say(outs[k], fixed(between(series[k].points, t), 4)));
    },
  };
}
