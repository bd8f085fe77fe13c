// One run: its curves while it trains, its pictures, its evaluations, and what it is made of.

import { get, isLeft, post } from "./api.js";
import { counted, duration, interval, num, shapeWords, whole } from "./format.js";
import { fill, h, say } from "./dom.js";
import { button, facts, folded, slider, text, words } from "./controls.js";
import { badge } from "./view-runs.js";
import { curvesOf } from "./curves.js";
import { evaluationPart } from "./evaluation.js";
import { hrefOf, note } from "./router.js";
import { keepRun, listen, runs } from "./store.js";

/** Least time between two looks at all of a run while it trains; its curves come with each event. */
const AFRESH = 15000;
/** Events of a training by which its pace is told. */
const WINDOW = 60;

export function showRun({ root, id, query, signal, title }) {
  const known = runs.get(id);
  const heading = h("h1", null, known?.name ?? "Run");
  title(known?.name ?? "Run");
  const state = h("span", { class: "head-state" });
  const actions = h("div", { class: "buttons" });
  const said = words();
  const bar = trainingBar();
  const curves = curvesOf(id, signal);
  const previews = previewPart(id, query);
  const about = h("div");
  const folds = h("div", { class: "folds" });
  const measured = evaluationPart(id, signal);
  root.append(
    h("p", { class: "crumb" }, h("a", { href: "#/runs" }, "Runs")),
    h("div", { class: "head" }, h("div", { class: "head-title" }, heading, state), actions),
    said.element,
    bar.element,
    about,
    h("section", { "aria-label": "Curves" }, h("h2", null, "Training"), curves.element),
    previews.element,
    measured.element,
    folds,
  );

  let full = null;
  let lookedAt = 0;

  async function load() {
    lookedAt = Date.now();
    const before = runs.get(id);
    const answered = await get(`/runs/${id}`, signal);
    const newer = runs.get(id);
    if (newer && newer !== before && newer.state !== answered.state) return load(); // it turned meanwhile
    full = answered;
    keepRun(full);
    say(heading, full.name);
    title(full.name);
    showActions();
    previews.update(full);
    measured.update(full);
    showFolds();
    brief(full);
  }

  function brief(run) {
    if (state.dataset.at !== run.state) {
      state.dataset.at = run.state;
      fill(state, badge(run.state));
    }
    bar.update(run);
    if (full) fill(about, aboutRun({ ...full, ...run }));
    if (run.error) said.fail(run.error);
  }

  function showActions() {
    const can = full.can_sample;
    fill(
      actions,
      can && h("a", { class: "button main", href: hrefOf("sample", id) }, "Sample"),
      can && h("a", { class: "button", href: hrefOf("destroy", id) }, "Destroy and Reconstruct"),
      can && h("a", { class: "button", href: hrefOf("edit", id) }, "Edit"),
      h("a", { class: "button", href: hrefOf("compare", "", { run: id }) }, "Compare"),
      full.can_stop && button("Stop", () => ask("stop", "It saves what it has learned, then stops."), { said }),
      full.can_resume && button("Go on training", () => ask("resume", "It goes on where it stopped."), { said }),
    );
  }

  async function ask(what, then) {
    await post(`/runs/${id}/${what}`);
    said.say(then);
  }

  function showFolds() {
    const open = new Set([...folds.querySelectorAll("details[open] > summary")].map((one) => one.textContent));
    const fold = (name, make) => folded(name, make, { open: open.has(name) });
    fill(
      folds,
      h("h2", null, "Details"),
      fold("Log", () => (full.log.length ? text(full.log.join("\n"), "Log") : h("p", { class: "quiet" }, "Nothing is written yet."))),
      fold("Config", () => [full.command && h("p", null, "Made by ", h("code", null, full.command)), text(full.config || "None.", "Config")]),
      fold("Environment", () => environmentTable(full.environment)),
    );
  }

  function fails(error) {
    if (isLeft(error)) return;
    said.fail(error);
    if (error.status !== 404) return;
    for (const part of [bar.element, about, ...root.querySelectorAll("section"), folds]) part.hidden = true;
  }

  const look = () => curves.look().catch(fails);
  listen("run", (run) => {
    if (run.id !== id) return;
    const turned = full && run.state !== full.state;
    brief(run);
    look();
    const drew = full && run.preview !== undefined && run.preview !== (full.previews.at(-1) ?? null);
    if (turned || drew || Date.now() - lookedAt > AFRESH) load().catch(fails);
  }, signal);
  listen("run-gone", (gone) => gone.id === id && said.fail("This run's folder is not there any more."), signal);
  listen("lists", () => { load().catch(fails); look(); }, signal);
  listen("job", (job) => job.kind === "evaluate" && job.run === id && measured.heed(job), signal);
  if (known) brief(known);
  load().catch(fails);
  look();
}

/** How far a training is, and how long it takes on at the pace of the last steps. */
function trainingBar() {
  const bar = h("progress", { max: 1, value: 0, "aria-label": "Training" });
  const line = h("span", { class: "progress-words" });
  const element = h("div", { class: "progress training", hidden: true }, bar, line);
  let seen = [];
  return {
    element,
    update(run) {
      element.hidden = !["running", "starting"].includes(run.state);
      if (element.hidden) {
        seen = [];
        return;
      }
      if (run.step < seen.at(-1)?.step) seen = [];
      seen = [...seen.slice(-WINDOW), { step: run.step, at: performance.now() }];
      const [first] = seen;
      if (run.steps) bar.value = run.step / run.steps;
      else bar.removeAttribute("value");
      const pace = (performance.now() - first.at) / 1000 / (run.step - first.step);
      const left = run.step > first.step ? duration(pace * (run.steps - run.step)) : "";
      say(line, run.steps ? `Step ${whole(run.step)} of ${whole(run.steps)}, loss ${num(run.loss)}${left ? `, ${left} left` : ""}` : "It reads its images.");
    },
  };
}

function aboutRun(run) {
  const classes = run.clusters ? `none; ${counted(run.clusters, "cluster")} found in the images` : run.num_classes ? whole(run.num_classes) : "none";
  const sampler = run.sample ? `${run.sample.sampler}, ${counted(run.calls ?? run.sample.steps, "network call")}` : "\u2013";
  return facts([
    ["Step", run.steps ? `${whole(run.step)} of ${whole(run.steps)}` : whole(run.step)],
    ["Loss", num(run.loss)],
    ["KID while it trained", interval(run.quality)],
    ["Images", [run.source, shapeWords(run.shape)].filter(Boolean).join(", ")],
    ["Preset", run.preset],
    ["Schedule", run.T ? counted(run.T, "step") : "\u2013"],
    ["The network predicts", run.parametrisation ?? "\u2013"],
    ["Classes", classes],
    ["Drawn by", sampler],
    ["Checkpoints", run.checkpoints.length ? `${whole(run.checkpoints.length)}, the last of step ${whole(run.checkpoints.at(-1))}` : "none yet"],
  ]);
}

function environmentTable(environment) {
  const entries = Object.entries(environment ?? {});
  if (!entries.length) return h("p", { class: "quiet" }, "Not noted.");
  const plain = (value) => (value !== null && typeof value === "object" ? JSON.stringify(value) : String(value));
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Environment" }, h("table", { class: "plain" }, h("tbody", null, entries.map(([name, value]) => h("tr", null, h("th", { scope: "row" }, name), h("td", null, plain(value)))))));
}

/** Shows a picture at a whole multiple of its size, or a whole part of it, that fits. */
function fit(image, room) {
  const width = image.naturalWidth;
  image.style.width = `${width <= room ? width * Math.floor(room / width) : Math.floor(width / Math.ceil(width / room))}px`;
  image.style.imageRendering = width <= room ? "pixelated" : "auto";
}

/** What it drew on its way, by step. */
function previewPart(id, query) {
  const image = h("img", { class: "pixels preview", alt: "" });
  const real = h("img", { class: "pixels", alt: "Some of the images that it learns from", hidden: true });
  const realPart = h("figure", { hidden: true }, real, h("figcaption", null, "What it learns from"));
  const caption = h("figcaption", { class: "halves" }, h("span", null, "Weights as trained"), h("span", null, "Their running average"));
  let steps = [];
  const line = slider("Training step", {
    min: 0,
    max: 0,
    value: 0,
    shown: (k) => (steps.length ? whole(steps[k] ?? 0) : ""),
    oninput: (k) => show(k, true),
  });
  const pictures = h("div", { class: "previews" }, h("figure", null, image, caption), realPart);
  const none = h("p", { class: "quiet" }, "No pictures yet: the first ones come after an eighth of the training.");
  const element = h("section", { hidden: true }, h("h2", null, "Pictures on the way"), none, h("div", { class: "on-the-way" }, line.element), pictures);

  function show(k, noted) {
    if (!steps.length) return;
    image.src = `/api/runs/${id}/previews/${steps[k]}.png`;
    image.alt = `Drawn after ${whole(steps[k])} steps, from the same noise each time`;
    if (noted) {
      query.set("step", steps[k]);
      if (k === steps.length - 1) query.delete("step");
      note(query);
    }
  }

  image.addEventListener("load", () => {
    const room = pictures.clientWidth || 600;
    fit(image, Math.min(room, 800));
    caption.style.width = image.style.width;
  });

  real.addEventListener("load", () => fit(real, Math.min(pictures.clientWidth || 600, 480)));
  return {
    element,
    update(run) {
      element.hidden = false;
      const atEnd = !steps.length || line.value >= steps.length - 1;
      steps = run.previews;
      none.hidden = steps.length > 0;
      line.element.parentElement.hidden = steps.length < 2;
      pictures.hidden = steps.length === 0 && !run.reals;
      image.parentElement.hidden = steps.length === 0;
      line.bounds(0, Math.max(0, steps.length - 1));
      const asked = query.has("step") ? steps.indexOf(Number(query.get("step"))) : -1;
      line.value = asked >= 0 ? asked : atEnd ? steps.length - 1 : line.value;
      show(line.value);
      realPart.hidden = real.hidden = !run.reals;
      if (run.reals && !real.src) real.src = run.reals;
    },
  };
}

