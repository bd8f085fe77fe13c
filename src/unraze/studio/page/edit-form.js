// What to do with an image: vary it, fill a part of it in, or blend it with another; and how.

import { h, say } from "./dom.js";
import { num } from "./format.js";
import { choice, field, segments, slider } from "./controls.js";
import { classesOf } from "./destroy-images.js";

export const MODES = [["vary", "Vary"], ["inpaint", "Fill in"], ["interpolate", "Blend"]];
const ACTS = { vary: "Vary it", inpaint: "Fill it in", interpolate: "Blend them" };
const WORDS = {
  vary: "Noise is added to the image, and taken away again in another way.",
  inpaint: "What you paint over is drawn anew, to go with the rest, which stays to the bit.",
  interpolate: "From one image to another, through the noise that both are made from.",
};
const METHODS = [
  ["pigdm", "\u03a0GDM, the usual one"],
  ["mmps", "MMPS, the most exact"],
  ["diffpir", "DiffPIR"],
  ["dps", "DPS"],
  ["repaint", "RePaint, steps made several times"],
  ["replace", "replacing alone, the quickest"],
];
/** Network calls where nothing is asked, but of variations: those go as the run draws. */
const STEPS = 50;
const COUNTS = { vary: 8, inpaint: 8, interpolate: 9 };

/** The form; body() is what POST /api/jobs/edit takes but for images and mask, query() what the address keeps. */
export function editForm(run, here, given, { send, changed }) {
  const own = run.sample ?? {};
  const at = (key, fallback) => given.get(key) ?? fallback;
  const hasClasses = run.num_classes > 0 || run.clusters > 0;
  let mode = run.distilled || !MODES.some(([key]) => key === at("do")) ? "vary" : at("do");
  const strength = slider("Strength", { min: 0, max: 1, step: 0.01, value: at("strength", 0.5), shown: (v) => (v === 0 ? "0, the image itself" : v === 1 ? "1, nothing of it is left" : num(v, 2)) });
  const label = choice(classesOf(run, "not told"), at("class", ""));
  const of = choice(classesOf(run, "not told"), at("of", ""));
  const method = choice(METHODS, at("method", "pigdm"));
  const repeats = h("input", { type: "number", min: 1, max: 100, step: 1, value: at("repeats", 5) });
  const seed = h("input", { type: "number", min: 0, step: 1, value: at("seed", 0) });
  const countOf = (key, min) => h("input", { type: "number", min, max: here.limits.pictures, step: 1, value: (mode === "interpolate") === (key === "interpolate") ? at("count", COUNTS[key]) : COUNTS[key] });
  const [results, way] = [countOf("vary", 1), countOf("interpolate", 2)];
  const steps = h("input", { type: "number", min: 1, max: run.T ?? 1000, step: 1, value: at("steps", "") });
  const guidance = h("input", { type: "number", min: 0, max: 100, step: "any", value: at("guidance", "") });
  const act = h("button", { type: "submit", class: "main" });
  const again = h("button", { type: "button", onclick: () => { seed.value = Math.floor(Math.random() * 1e6); form.requestSubmit(); } }, "Another seed");
  const what = h("p", { class: "quiet" });
  const parts = {
    strength: strength.element,
    label: field("Class", label, { hint: "what the results are to be of" }),
    of: field("The image is of class", of, { hint: "says it to keep the layout: its own noise is found with this class, and walked again with the other" }),
    method: field("How what is known leads", method),
    repeats: field("How often each step is made", repeats),
    seed: field("Seed", seed),
    results: field("Results", results),
    way: field("Pictures on the way", way),
    guidance: field("Guidance", guidance),
  };
  const modes = segments("What is done", run.distilled ? MODES.slice(0, 1) : MODES, mode, (to) => { mode = to; adapt(); changed(); });
  const form = h(
    "form",
    { class: "form panel edit-form", "aria-label": "How to edit", onsubmit: (event) => { event.preventDefault(); send(); } },
    parts.strength,
    parts.method,
    parts.repeats,
    parts.label,
    parts.of,
    h("div", { class: "pair" }, parts.seed, parts.results, parts.way),
    h("div", { class: "pair" }, field("Steps", steps), parts.guidance),
    h("div", { class: "buttons" }, act, again),
    run.distilled && h("p", { class: "quiet" }, "This run was distilled: it says a picture, not the mean of those that may be. To fill in and to blend take the run that it was made of."),
    h("p", { class: "quiet" }, "What was blurred, shrunk or spoilt is restored in a terminal: ", h("code", null, "unraze edit restore"), "."),
  );

  function adapt() {
    const isBlend = mode === "interpolate";
    say(act, ACTS[mode]);
    say(what, WORDS[mode]);
    parts.strength.hidden = mode !== "vary";
    parts.method.hidden = mode !== "inpaint";
    parts.repeats.hidden = mode !== "inpaint" || method.value !== "repaint";
    parts.label.hidden = !hasClasses;
    parts.of.hidden = mode !== "vary" || !hasClasses || label.value === "";
    parts.guidance.hidden = !run.guidable || label.value === "";
    parts.seed.hidden = parts.results.hidden = again.hidden = isBlend;
    parts.way.hidden = !isBlend;
    const varies = mode === "vary" && (parts.of.hidden || of.value === "");
    steps.placeholder = String(varies ? own.steps : Math.min(STEPS, run.T ?? STEPS));
    guidance.placeholder = String(varies ? (own.guidance ?? 1) : 1);
  }

  function body() {
    const number = (input) => (input.value === "" ? null : Number(input.value));
    const said = { edit: mode, run: run.id, class: number(label), count: Number((mode === "interpolate" ? way : results).value), steps: number(steps), guidance: parts.guidance.hidden ? null : number(guidance) };
    if (mode === "interpolate") return said;
    said.seed = Number(seed.value);
    if (mode === "vary") return { ...said, strength: strength.value, of: parts.of.hidden ? null : number(of) };
    return { ...said, method: method.value, ...(method.value === "repaint" && { repeats: Number(repeats.value) }) };
  }

  form.addEventListener("input", () => { adapt(); changed(); });
  adapt();
  return { element: form, modes: h("div", { class: "row" }, modes, what), body, query: () => queryOfEdit(body()), get mode() { return mode; } };
}

/** What the address holds of a request to edit, but for its images and its mask. */
export function queryOfEdit(said) {
  const usual = { do: "vary", strength: 0.5, seed: 0, method: "pigdm", repeats: 5, count: COUNTS[said.edit] };
  const { strength, method, repeats, seed, count, steps, guidance, of } = said;
  const kept = new URLSearchParams();
  const all = { do: said.edit, strength, method, repeats: method === "repaint" ? repeats : null, seed, count, class: said.class, of, steps, guidance };
  for (const [key, value] of Object.entries(all)) if (value !== null && value !== undefined && value !== usual[key]) kept.set(key, value);
  return kept;
}
