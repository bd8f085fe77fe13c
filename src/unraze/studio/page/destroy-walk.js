// Reconstruct: from one x_t back to a picture, greedy and random side by side.

import { get, isLeft, postJob, remove } from "./api.js";
import { h, on, say } from "./dom.js";
import { num } from "./format.js";
import { button, choice, field, player, slider, words } from "./controls.js";
import { inline, mean, stepping, sharing, sym } from "./math.js";
import { progressOf } from "./queue.js";
import { Frames, canvasOf, cut, resize } from "./sprites.js";
import { added, ended, jobs, listen } from "./store.js";

/** The part of the view that walks. `start()` says from where; at(t) is told which moment is shown. */
export function walkPart(run, here, query, { start, at, kept, signal, wanted }) {
  const said = words();
  const stale = h("p", { class: "quiet" });
  const share = sharing();
  const steps = slider("Steps, at most", { min: 1, max: 200, value: Number(query.get("steps") ?? 50), oninput: keep });
  const eta = slider("Noise of the random walk", { min: 0, max: 1, step: 0.01, value: Number(query.get("eta") ?? 1), shown: (v) => (v === 0 ? "0, greedy" : num(v, 2)), oninput: () => { share.update({ eta: eta.value }); keep(); } });
  const sigma = choice(here.sigmas.filter((one) => one !== "learned" || run.learned_variance).map((one) => [one, { beta: "\u03b2 of the step", beta_tilde: "\u03b2\u0303, the posterior's", learned: "learned" }[one] ?? one]), query.get("sigma") ?? "beta", { onchange: keep });
  const bar = progressOf();
  const stop = button("Cancel", () => remove(`/jobs/${job.id}`), { said, small: true, hidden: true });
  const go = button(["Walk back from ", inline(sym.xt)], begin, { main: true, said });
  const film = player("Moment", { signal, shown: (k) => (job?.result ? `t = ${num(job.result.times[k], 4)}` : ""), show });
  const sides = [side(run, "Greedy", () => ["each step goes to the mean", stepping()], wanted()), side(run, "Random", () => ["each step adds noise of its own", stepping()], wanted())];
  const mu = mean();
  const shown = h("div", { class: "stack", hidden: true }, h("div", { class: "walks" }, sides.map((one) => one.element)), film.element, mu.element);
  let job = null;
  let frames = null;

  const element = h(
    "section",
    { class: "panel stack" },
    h("h2", null, "Reconstruct"),
    h("p", { class: "lead" }, "From x", h("sub", null, "t"), " the network walks back, step by step: greedily, or with fresh noise in every step. Both begin with the same x", h("sub", null, "t"), "."),
    h("div", { class: "controls" }, steps.element, h("div", { class: "with-formula" }, eta.element, share.element), field(h("span", null, inline(sym.sigma), " is"), sigma)),
    h("div", { class: "row" }, go, stop, bar.element),
    said.element,
    stale,
    shown,
  );
  share.update({ eta: eta.value });

  function keep() {
    for (const [key, value, usual] of [["steps", steps.value, 50], ["eta", eta.value, 1], ["sigma", sigma.value, "beta"], ["walk", job?.id ?? "", ""]]) {
      if (value === usual) query.delete(key);
      else query.set(key, value);
    }
    kept();
  }

  async function begin() {
    const { image, t, seed, label } = start();
    const made = added(await postJob("walk", { run: run.id, image, t, seed, class: label, steps: steps.value, eta: eta.value, sigma: sigma.value }));
    if (job && !ended(job)) remove(`/jobs/${job.id}`).catch(() => {});
    follow(made);
    keep();
  }

  function follow(now) {
    if (job?.id !== now.id) {
      frames?.clear();
      frames = new Frames((k) => `/api/jobs/${now.id}/frames/${k}.png`);
      film.halt();
      film.grow(0);
    }
    job = now;
    bar.update(now);
    stop.hidden = ended(now);
    if (now.state === "failed") said.fail(now.error);
    tellStale();
    shown.hidden = !now.result;
    if (!now.result) return;
    film.follow(now.result.frames);
  }

  async function show(k) {
    const { result, id } = job;
    at(result.times[k]);
    const [alpha, beta] = [result.alpha_t[k], result.beta_t[k]];
    mu.update({ alpha, beta });
    sides[0].update(k ? 0 : undefined);
    sides[1].update(k ? result.sigma_t[k] : undefined);
    try {
      const sprite = await frames.get(k);
      if (id !== job.id || film.value !== k || signal.aborted) return;
      sides.forEach((one, number) => one.draw(sprite, number));
    } catch (error) {
      if (!signal.aborted && id === job.id) said.fail(error);
    }
  }

  /** A walk that began elsewhere stays to be looked at, and says so. */
  function tellStale() {
    if (!job) return;
    const now = start();
    const from = job.asked;
    const same = Math.round(now.t) === Math.round(from.t) && now.seed === from.seed && JSON.stringify(now.image) === JSON.stringify(from.image) && (now.label ?? null) === (from.class ?? null);
    say(stale, same ? "" : `This walk began from another x_t, at t = ${num(from.t, 4)}. Walk again to begin from the present one.`);
  }

  listen("job", (now) => now.id === job?.id && follow(now), signal);
  on(signal, "abort", () => frames?.clear());
  const asked = query.get("walk");
  if (asked) {
    Promise.resolve(jobs.get(asked) ?? get(`/jobs/${asked}`, signal)).then(follow).catch((error) => {
      if (isLeft(error)) return;
      query.delete("walk");
      kept();
    });
  }
  return { element, moved: tellStale, resized: () => sides.forEach((one) => one.resize(wanted())) };
}

function side(run, name, explained, wanted) {
  const [why, step] = explained();
  const x = canvasOf(run.shape, wanted, `${name}: x_t`);
  const estimate = canvasOf(run.shape, wanted, `${name}: the network's estimate of x_0`);
  const pictures = [x, estimate];
  const element = h(
    "div",
    { class: "walk" },
    h("h3", null, name, h("span", { class: "quiet" }, `: ${why}`)),
    h("div", { class: "pictures" }, h("figure", null, x, h("figcaption", null, inline(sym.xt))), h("figure", null, estimate, h("figcaption", null, inline(sym.x0Hat)))),
    step.element,
  );
  return {
    element,
    update: (sigma) => step.update({ sigma }),
    draw: (sprite, number) => pictures.forEach((canvas, k) => cut(canvas, sprite, 4, number + 2 * k)),
    resize: (to) => pictures.forEach((canvas) => resize(canvas, to)),
  };
}
