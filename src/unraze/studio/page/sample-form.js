// The settings of a drawing: what differs from the run's own is asked for, and stands in the address.

import { fill, h, settled } from "./dom.js";
import { num } from "./format.js";
import { check, choice, field, folded, slider } from "./controls.js";
import { inline, sharing, sym } from "./math.js";

const SETTINGS = ["sampler", "steps", "spacing", "sigma", "eta", "sigma_share", "order", "clip", "guidance", "guidance_interval", "final_noise"];
/** Keys that only some samplers have: with another sampler they are that one's own again. */
const OF_ONE = ["eta", "sigma_share", "order", "restart_interval", "restart_repeats", "final_noise"];
const NAMES = { beta: "\u03b2, the step's own", beta_tilde: "\u03b2\u0303, the posterior's", learned: "learned by the network" };
const SPACINGS = { time: "even in t", angle: "even in angle", log_snr: "even in log signal to noise", karras: "as Karras et al." };
const CLIPS = { none: "none", clip: "to the range of images", "x0-only": "x\u0302\u2080 only", dynamic: "dynamic" };

/** The form; body() is what POST /api/jobs/sample takes, without client; query() what the address keeps. */
export function sampleForm(run, here, given, { draw, changed }) {
  const own = run.sample ?? {};
  const at = (key, fallback) => given.get(key) ?? fallback;
  const samplers = here.samplers.filter((one) => (run.distilled ? one.name === "consistency" : one.name !== "consistency"));
  const of = (name) => here.samplers.find((one) => one.name === name) ?? { keys: [], order: null };

  const seed = h("input", { type: "number", min: 0, step: 1, value: at("seed", 0) });
  const fresh = h("button", { type: "button", class: "small", onclick: () => { seed.value = Math.floor(Math.random() * 1e6); form.requestSubmit(); } }, "Another seed, and draw");
  const count = h("input", { type: "number", min: 1, max: here.limits.pictures, step: 1, value: at("count", 16) });
  const classes = choice(classOptions(run), at("classes", ""));
  const sampler = choice(samplers.map((one) => [one.name, one.name]), at("sampler", own.sampler));
  const steps = h("input", { type: "number", min: 1, max: run.T ?? 1000, step: 1, value: at("steps", own.steps) });
  const guidance = slider("Guidance", { min: 0, max: 8, step: 0.1, value: at("guidance", own.guidance ?? 1), shown: (v) => (v === 1 ? "1, none" : num(v, 2)), hint: "1 takes the network at its word; more holds on to the class" });
  const noise = noisePart(at, own);
  const sigma = choice(here.sigmas.filter((one) => one !== "learned" || run.learned_variance).map((one) => [one, NAMES[one] ?? one]), at("sigma", own.sigma));
  const order = choice([], "");
  const spacing = choice(spacingsOf(here, own), at("spacing", Array.isArray(own.spacing) ? "tuned" : own.spacing));
  const clip = choice(here.clips.map((one) => [one, CLIPS[one] ?? one]), at("clip", own.clip));
  const interval = (own.guidance_interval ?? [0, 1]).map((value, k) => h("input", { type: "number", min: 0, max: 1, step: 0.01, value: (given.get("guidance_interval")?.split(",") ?? [])[k] ?? value, "aria-label": k ? "Guidance up to this share of T" : "Guidance from this share of T" }));
  const last = check("Add noise in the last step too", { checked: at("final_noise", String(Boolean(own.final_noise))) === "true" });
  const checkpoint = choice(checkpointOptions(run), at("checkpoint", ""));
  const raw = check("Weights as trained, not their average", { checked: at("raw", "false") === "true" });

  const fields = {
    sigma: field(h("span", null, inline(sym.sigma), " of a step"), sigma),
    order: field("Order", order),
    guidance: guidance.element,
    interval: h("div", { class: "field" }, h("div", { class: "field-name" }, h("span", null, "Guided from, to (share of T)")), h("div", { class: "pair" }, interval)),
    classes: field("Class", classes),
  };
  const form = h(
    "form",
    { class: "form panel sample-form", "aria-label": "How to draw", onsubmit: (event) => { event.preventDefault(); draw(); } },
    h("div", { class: "pair" }, field("Seed", seed), field("Pictures", count)),
    fields.classes,
    h("div", { class: "pair" }, field("Sampler", sampler), field("Steps", steps)),
    noise.element,
    fields.sigma,
    fields.guidance,
    h("div", { class: "buttons" }, h("button", { type: "submit", class: "main" }, "Draw"), fresh),
    folded("More options", () => h("div", { class: "form" }, field("Steps lie", spacing), fields.order, field("Clip the estimate", clip), fields.interval, last.element, field("Checkpoint", checkpoint), raw.element), { open: ["spacing", "order", "clip", "guidance_interval", "final_noise", "checkpoint", "raw"].some((key) => given.has(key)) }),
  );

  function adapt() {
    const { keys, order: most } = of(sampler.value);
    noise.adapt(sampler.value, keys);
    fields.sigma.hidden = !keys.includes("sigma");
    last.element.hidden = !keys.includes("final_noise");
    fields.order.hidden = !most;
    const wanted = order.dataset.of === sampler.value ? order.value : sampler.value === own.sampler || !order.dataset.of ? at("order", sampler.value === own.sampler ? (own.order ?? "") : "") : "";
    order.dataset.of = sampler.value;
    fill(order, h("option", { value: "" }, "the sampler's own"), Array.from({ length: most ?? 0 }, (_, k) => h("option", { value: k + 1 }, String(k + 1))));
    order.value = String(wanted);
    fields.guidance.hidden = fields.interval.hidden = !run.guidable;
    fields.classes.hidden = !run.num_classes && !run.clusters;
  }

  /** The settings as they stand, those that the sampler has. */
  function settings() {
    const { keys, order: most } = of(sampler.value);
    const now = { sampler: sampler.value, steps: Number(steps.value), clip: clip.value };
    now.spacing = spacing.value !== "tuned" ? spacing.value : own.spacing.length === now.steps + 1 ? own.spacing : "time";
    if (noise.key) now[noise.key] = noise.value;
    if (keys.includes("sigma")) now.sigma = sigma.value;
    if (keys.includes("final_noise")) now.final_noise = last.box.checked;
    if (most && order.value) now.order = Number(order.value);
    if (run.guidable) Object.assign(now, { guidance: guidance.value, guidance_interval: interval.map((one) => Number(one.value)) });
    return now;
  }

  function differing() {
    const same = (a, b) => JSON.stringify(a ?? null) === JSON.stringify(b ?? null);
    const now = settings();
    const moved = now.sampler !== own.sampler;
    return Object.fromEntries(Object.entries(now).filter(([key, value]) => !same(value, own[key]) && !(noise.key === key && value === noise.usual && (moved || own[key] === null))));
  }

  /** All settings where one differs: what is left out would be as the run says, tuned or not. */
  function asked() {
    if (!Object.keys(differing()).length) return {};
    const now = settings();
    const others = Object.entries(own).filter(([key, value]) => value !== null && !(OF_ONE.includes(key) && (key === "order" || now.sampler !== own.sampler)));
    return { ...Object.fromEntries(others), ...now };
  }

  function body() {
    const said = classes.value;
    return {
      run: run.id,
      checkpoint: checkpoint.value === "" ? null : checkpoint.value === "best" ? "best" : Number(checkpoint.value),
      raw: raw.box.checked,
      seed: Number(seed.value),
      count: Number(count.value),
      classes: said === "" ? null : /^\d+$/.test(said) ? Number(said) : said,
      settings: asked(),
    };
  }

  function query() {
    const kept = new URLSearchParams();
    const { checkpoint: step, raw: is, seed: number, count: pictures, classes: wanted } = body();
    const changes = differing();
    if (Array.isArray(changes.spacing)) delete changes.spacing;
    const plain = { seed: number || "", count: pictures === 16 ? "" : pictures, classes: wanted ?? "", checkpoint: step ?? "", raw: is || "", ...changes };
    for (const [key, value] of Object.entries(plain)) if (value !== "") kept.set(key, value);
    return kept;
  }

  form.addEventListener("input", (event) => { if (event.target === sampler) adapt(); });
  form.addEventListener("input", settled(changed, 200));
  adapt();
  return { element: form, body, query };
}

/** What the address holds of a request to draw: the settings that a recipe or a link gives. */
export function queryOfSample(asked) {
  const kept = { seed: asked.seed, count: asked.count, classes: asked.classes ?? "", checkpoint: asked.checkpoint ?? "", raw: asked.raw ? "true" : "" };
  for (const key of SETTINGS) {
    const value = asked.settings?.[key];
    if (value !== undefined && value !== null && !(key === "spacing" && Array.isArray(value))) kept[key] = String(value);
  }
  return kept;
}

function noisePart(at, own) {
  const shown = sharing();
  const usual = { ddim: 0 };
  const line = slider("Noise, from greedy to random", { min: 0, max: 1, step: 0.01, value: 1, shown: (v) => (v === 0 ? "0, greedy" : v === 1 ? "1, random" : num(v, 2)), oninput: (v) => shown.update({ eta: v }) });
  const element = h("div", { class: "with-formula" }, line.element, shown.element);
  const part = {
    element,
    key: null,
    usual: 1,
    get value() {
      return line.value;
    },
    adapt(sampler, keys) {
      const key = keys.includes("sigma_share") ? "sigma_share" : keys.includes("eta") ? "eta" : null;
      part.usual = usual[sampler] ?? 1;
      if (key && (part.key !== key || part.sampler !== sampler)) {
        const kept = sampler === own.sampler ? own[key] : null;
        line.value = Number((part.sampler ? null : at(key)) ?? kept ?? part.usual);
        shown.update({ eta: line.value });
      }
      shown.element.hidden = key !== "sigma_share";
      part.key = key;
      part.sampler = sampler;
      element.hidden = key === null;
    },
  };
  return part;
}

function classOptions(run) {
  const unlabelled = run.guidable ? [["none", "none: of any class"]] : [];
  if (run.clusters) return [["", "clusters, as often as among the images"], ...unlabelled, ...Array.from({ length: run.clusters }, (_, k) => [String(k), `cluster ${k}`])];
  return [["", "all in turn"], ...unlabelled, ...Array.from({ length: run.num_classes }, (_, k) => [String(k), run.class_names[k] ?? String(k)])];
}

function spacingsOf(here, own) {
  const named = here.spacings.map((one) => [one, SPACINGS[one] ?? one]);
  return Array.isArray(own.spacing) ? [["tuned", "at tuned times"], ...named] : named;
}

function checkpointOptions(run) {
  const steps = [...run.checkpoints].reverse().map((step) => [String(step), `step ${step}`]);
  return [["", "the newest"], ...(run.best === null ? [] : [["best", `the best, step ${run.best}`]]), ...steps];
}
