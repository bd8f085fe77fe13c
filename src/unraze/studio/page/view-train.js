// A new training: what from, how long, and what that takes before it begins.

import { isLeft, post, postJob, get } from "./api.js";
import { bytes, counted, duration, num, shapeWords, whole } from "./format.js";
import { fill, h, settled } from "./dom.js";
import { button, check, choice, facts, field, offer, segments, words } from "./controls.js";
import { progressOf } from "./queue.js";
import { go, note } from "./router.js";
import { about, added, ended, jobs, keepRun, listen, runs } from "./store.js";

const NUMBERS = ["minutes", "steps", "seed", "eval_every", "batch", "lr", "held_out"];

export function showTrain({ root, query, signal, title }) {
  title("Start a training");
  const said = words();
  const estimated = h("div", { class: "stack" });
  const bar = progressOf();
  const form = formOf(query, changed);
  let job = null;

  const start = button("Start training", begin, { main: true, said });
  const estimate = button("Estimate time and memory", measure, { said });
  root.append(
    h("p", { class: "crumb" }, h("a", { href: "#/runs" }, "Runs")),
    h("h1", null, "Start a training"),
    h("div", { class: "split" },
      form.element,
      h("aside", { class: "panel", "aria-label": "Before it starts" },
        h("h2", null, "Before it starts"),
        h("p", { class: "quiet" }, "An estimate trains a few steps and tells what the whole would take."),
        estimated,
        bar.element,
        h("div", { class: "buttons" }, estimate, start),
        busyWords(),
        said.element)),
  );

  async function measure() {
    fill(estimated);
    follow(added(await postJob("estimate", form.said())));
  }

  async function begin() {
    const run = await post("/trainings", form.said());
    keepRun(run);
    go("runs", run.id);
  }

  function follow(now) {
    job = now.id;
    bar.update(now);
    if (now.state === "failed") said.fail(now.error);
    if (now.state === "done" && now.result) fill(estimated, estimateOf(now.result));
  }

  function changed() {
    fill(estimated); // it was of other settings
    job = null;
    bar.update(null);
  }

  listen("job", (now) => now.id === job && follow(now), signal);
  form.load(signal).catch((error) => !isLeft(error) && said.fail(error));
  const earlier = [...jobs.values()].reverse().find((one) => one.kind === "estimate" && !ended(one));
  if (earlier) follow(earlier);
}

function busyWords() {
  const busy = [...runs.values()].filter((run) => run.state === "running");
  return busy.length > 0 && h("p", { class: "quiet" }, `${busy.map((run) => run.name).join(", ")} ${busy.length === 1 ? "is" : "are"} being trained now; two trainings at once share the processor, and each is slower.`);
}

function estimateOf(result) {
  return [
    h("p", null, result.words),
    facts([
      ["Time", duration(result.seconds) || "\u2013"],
      ["Memory", `${bytes(result.memory_bytes)} of ${bytes(result.memory_there)}`],
      ["Steps", whole(result.steps)],
      ["Images a second", num(result.images_per_second)],
      ["Images", `${whole(result.images)}, ${shapeWords(result.shape)}`],
      ["Network", counted(result.parameters, "parameter")],
    ]),
  ];
}

function formOf(query, changed) {
  const of = (name, fallback = "") => query.get(name) ?? fallback;
  const number = (name, props) => h("input", { type: "number", value: of(name), name, ...props });
  const source = choice([], "", { name: "source" });
  const preset = choice([], "", { name: "preset" });
  const detail = h("p", { class: "hint" });
  const presetAbout = h("p", { class: "hint" });
  const minutes = number("minutes", { min: 0.1, step: "any", value: of("minutes", query.has("steps") ? "" : "10") });
  const steps = number("steps", { min: 1, step: 1 });
  const length = h("div");
  const size = h("input", { type: "text", name: "size", value: of("size"), placeholder: "their own", spellcheck: "false", autocomplete: "off" });
  const channels = choice([["", "their own"], ["1", "grey"], ["3", "colour"]], of("channels"), { name: "channels" });
  const classes = check("Learn their classes, so that one can be asked for", { name: "classes", checked: of("classes") === "true" });
  const flip = check("Mirror them at random: for images that mean the same mirrored", { name: "flip", checked: of("flip") === "true" });
  const name = h("input", { type: "text", name: "name", value: of("name"), maxlength: 60, pattern: "[0-9A-Za-z][0-9A-Za-z_\\-]*", spellcheck: "false", autocomplete: "off" });
  let by = query.has("steps") ? "steps" : "minutes";
  let sources = [];
  let presets = [];

  const element = h(
    "form",
    { class: "form panel", onsubmit: (event) => event.preventDefault() },
    field("Images", source),
    detail,
    field("Preset", preset),
    presetAbout,
    h("div", { class: "field" }, h("div", { class: "field-name" }, h("span", null, "How long")), segments("How long, by", [["minutes", "Minutes"], ["steps", "Steps"]], by, (to) => { by = to; measureBy(); tell(); changed(); }), length),
    h("div", { class: "pair" }, field("Size", size), field("Colours", channels)),
    h("p", { class: "hint" }, "A size such as 32, or height x width: 32x48"),
    classes.element,
    flip.element,
    h("details", { class: "fold", open: ["eval_every", "batch", "lr", "held_out", "name", "seed"].some((key) => query.has(key)) }, h("summary", null, "More options"),
      h("div", { class: "fold-body form" },
        field("Name of the run", name, { hint: "letters, digits, - and _; empty: made of images and preset" }),
        h("div", { class: "pair" },
          field("Steps between measures", number("eval_every", { min: 1, step: 1, placeholder: "not measured" }), { hint: "train.eval_every, --eval-every" }),
          field("Share held out", number("held_out", { min: 0, max: 0.5, step: 0.01, placeholder: "the preset's" }), { hint: "data.held_out, --held-out" })),
        h("div", { class: "pair" },
          field("Batch", number("batch", { min: 1, step: 1, placeholder: "the preset's" })),
          field("Learning rate", number("lr", { min: 0, step: "any", placeholder: "the preset's" }))),
        field("Seed", number("seed", { min: 0, step: 1, value: of("seed", "0") })))),
  );

  function measureBy() {
    fill(length, by === "minutes" ? minutes : steps);
    minutes.setAttribute("aria-label", "Minutes");
    steps.setAttribute("aria-label", "Steps");
  }

  function tell() {
    detail.textContent = sources.find((one) => one.id === source.value)?.detail ?? "";
    presetAbout.textContent = presets.find((one) => one.name === preset.value)?.about ?? "";
    const kept = new URLSearchParams();
    for (const [key, value] of Object.entries(said())) if (value !== null && value !== false && !(key === "seed" && value === 0)) kept.set(key, value);
    note(kept);
  }

  function said() {
    const value = (key) => element.elements.namedItem(key)?.value?.trim() ?? "";
    const body = { source: source.value, preset: preset.value, size: value("size") || null, channels: value("channels") ? Number(value("channels")) : null, classes: classes.box.checked, flip: flip.box.checked, name: value("name") || null };
    for (const key of NUMBERS) body[key] = value(key) === "" ? null : Number(value(key));
    body[by === "minutes" ? "steps" : "minutes"] = null;
    body.seed ??= 0;
    return body;
  }

  element.addEventListener("input", changed); // at once: an estimate may be asked for right after
  element.addEventListener("input", settled(tell, 200));
  measureBy();
  return {
    element,
    said,
    async load(signal) {
      const [found, here] = await Promise.all([get("/sources", signal), about()]);
      sources = found.sources;
      presets = here.presets;
      offer(source, sources.map((one) => [one.id, one.title]), of("source") || sources.find((one) => one.title === "fashion-mnist")?.id);
      offer(preset, presets.map((one) => [one.name, one.name]), of("preset", "fast"));
      detail.textContent = sources.find((one) => one.id === source.value)?.detail ?? "";
      presetAbout.textContent = presets.find((one) => one.name === preset.value)?.about ?? "";
    },
  };
}
