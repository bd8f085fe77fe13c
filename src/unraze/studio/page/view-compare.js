// Two to four runs, or samplers of one, side by side.

import { get, isLeft, postJob } from "./api.js";
import { fill, h } from "./dom.js";
import { button, choice, empty, words } from "./controls.js";
import { callsPart } from "./compare-calls.js";
import { drawPart } from "./compare-draw.js";
import { evaluationWords, figuresTable, memorisationWords } from "./evaluation.js";
import { drawers } from "./of-run.js";
import { progressOf } from "./queue.js";
import { hrefOf, note } from "./router.js";
import { about, added, ended, jobs, listen, runs, state as store } from "./store.js";

const LETTERS = ["A", "B", "C", "D"];

export function showCompare({ root, query, signal, title }) {
  title("Compare");
  const said = words();
  const part = h("div", { class: "part" });
  root.append(h("div", { class: "head" }, h("h1", null, "Compare")), said.element, part);
  let begun = false;
  const begin = async () => {
    if (begun) return;
    begun = true;
    said.say("");
    if (!drawers().length) return part.append(nothing());
    try {
      build(part, await about(), query, signal);
    } catch (error) {
      if (!isLeft(error)) said.fail(error);
    }
  };
  if (store.loaded) return begin();
  said.say("Looking for runs \u2026");
  listen("lists", begin, signal);
}

function nothing() {
  return empty(
    "Nothing to compare yet",
    h("p", null, "Two runs, or one run drawn by two samplers, can be compared once there is a run that has learned something."),
    h("p", null, h("a", { class: "button main", href: hrefOf("train") }, "Start a training")),
    h("pre", null, "unraze train fashion-mnist"),
  );
}

/** What is compared, from the address: run=ID&how=SAMPLER:STEPS for each. */
function columnsOf(query) {
  const hows = query.getAll("how");
  const found = query.getAll("run").filter((id) => runs.has(id)).slice(0, 4).map((run, k) => {
    const [sampler = "", steps = ""] = (hows[k] ?? "").split(":");
    return { run, sampler: sampler === "own" ? "" : sampler, steps };
  });
  const there = drawers();
  if (found.length === 0) found.push(...there.slice(0, 2).map((run) => ({ run: run.id, sampler: "", steps: "" })));
  if (found.length === 1) {
    const other = there.find((run) => run.id !== found[0].run) ?? runs.get(found[0].run);
    found.push({ run: other.id, sampler: other.id === found[0].run ? "random" : "", steps: "" });
  }
  return found;
}

function build(part, here, query, signal) {
  const columns = columnsOf(query);
  const drawn = { jobs: (query.get("jobs") ?? "").split(",").filter(Boolean), seed: Number(query.get("seed") ?? 0), count: Number(query.get("count") ?? 16) };
  const chooser = h("div", { class: "choosers" });
  const more = button("Add another", () => { columns.push({ ...columns.at(-1) }); changed(true); });
  const named = () => columns.map(({ run, sampler, steps }, k) => ({ letter: LETTERS[k], run, name: nameOf(run, sampler, steps), settings: { ...(sampler && { sampler }), ...(steps && { steps: Number(steps) }) } }));
  const each = () => {
    const seen = new Set();
    return named().filter(({ run }) => !seen.has(run) && seen.add(run)).map((one) => ({ ...one, name: runs.get(one.run)?.name ?? "a run" }));
  };
  const draw = drawPart(query, { columns: named, signal, kept: (ids, seed, count) => { Object.assign(drawn, { jobs: ids, seed, count }); keep(); } });
  const figures = figuresPart({ shown: each, signal });
  const calls = callsPart({ shown: each, signal });

  function keep() {
    const kept = new URLSearchParams();
    for (const { run } of columns) kept.append("run", run);
    if (columns.some(({ sampler, steps }) => sampler || steps)) for (const { sampler, steps } of columns) kept.append("how", `${sampler || "own"}${steps ? `:${steps}` : ""}`);
    if (drawn.seed) kept.set("seed", drawn.seed);
    if (drawn.count !== 16) kept.set("count", drawn.count);
    if (drawn.jobs.length) kept.set("jobs", drawn.jobs.join(","));
    note(kept);
  }

  function changed(anew) {
    drawn.jobs = [];
    if (anew) lay();
    keep();
    draw.lay();
    figures.lay();
    calls.lay();
  }

  function lay() {
    fill(chooser, columns.map((column, k) => chooserOf(column, LETTERS[k], here, { changed, remove: columns.length > 2 ? () => { columns.splice(k, 1); changed(true); } : null })));
    more.hidden = columns.length >= 4;
  }

  part.append(h("section", { class: "panel stack", "aria-label": "What is compared" }, chooser, h("div", { class: "row" }, more)), draw.element, figures.element, calls.element);
  lay();
  draw.recall(drawn.jobs);
  figures.lay();
  calls.lay();
}

function nameOf(run, sampler, steps) {
  const how = [sampler, steps && `${steps} steps`].filter(Boolean).join(", ");
  return `${runs.get(run)?.name ?? "a run that is gone"}${how ? `: ${how}` : ""}`;
}

function chooserOf(column, letter, here, { changed, remove }) {
  const labelled = (name, control) => h("label", { class: "field" }, h("span", { class: "field-name" }, name), control);
  const run = choice(drawers().map((one) => [one.id, one.name]), column.run, { onchange: () => { column.run = run.value; changed(); } });
  const sampler = choice([["", "the run's own"], ...here.samplers.map((one) => [one.name, one.name])], column.sampler, { onchange: () => { column.sampler = sampler.value; changed(); } });
  const steps = h("input", { type: "number", min: 1, step: 1, value: column.steps, placeholder: "its own", onchange: () => { column.steps = steps.value; changed(); } });
  return h(
    "fieldset",
    { class: "chooser" },
    h("legend", null, h("span", { class: `letter letter-${letter}` }, letter)),
    labelled("Run", run),
    h("div", { class: "pair" }, labelled("Sampler", sampler), labelled("Steps", steps)),
    remove && button("Remove", remove, { small: true, "aria-label": `Remove ${letter}` }),
  );
}

/** The evaluations of the runs, side by side, and which differences are real. */
function figuresPart({ shown, signal }) {
  const said = words();
  const body = h("div", { class: "stack" });
  const count = h("input", { type: "number", id: "compare-count", min: 100, max: 100000, step: 100, value: 2000 });
  const asks = h("div", { class: "buttons" });
  const bars = h("div", { class: "stack bars" });
  const element = h("section", { class: "panel stack" }, h("h2", null, "Evaluations"), body, h("div", { class: "row" }, h("label", { for: "compare-count" }, "Samples"), count, asks), bars, said.element);
  let of = [];
  const seen = new Set();

  async function load() {
    const now = of;
    if (!now.length) return;
    try {
      const found = await get(`/compare?${now.map(({ run }) => `run=${run}`).join("&")}`, signal);
      if (now === of) fill(body, presented(found, now));
    } catch (error) {
      if (!isLeft(error)) said.fail(error);
    }
  }

  function follow(job) {
    const one = of.find(({ run }) => run === job.run);
    if (job.kind !== "evaluate" || !one) return;
    one.bar.update(job);
    if (job.state === "failed") said.fail(job.error);
    if (job.state === "done" && !seen.has(job.id)) {
      seen.add(job.id);
      load();
    }
  }

  function lay() {
    of = shown().map((one) => ({ ...one, bar: progressOf() }));
    fill(asks, of.map((one) => button(`Evaluate ${one.letter}`, async () => follow(added(await postJob("evaluate", { run: one.run, count: Number(count.value) }))), { said })));
    fill(bars, of.map((one) => one.bar.element));
    for (const job of jobs.values()) {
      if (job.kind === "evaluate" && ended(job)) seen.add(job.id);
      else follow(job);
    }
    load();
  }

  listen("job", follow, signal);
  return { element, lay };
}

function presented({ runs: found, words: said, error }, columns) {
  const withNames = found.map(({ id, evaluation }) => {
    const { letter, name } = columns.find(({ run }) => run === id);
    return { name: `${letter}, ${name}`, evaluation };
  });
  const known = withNames.filter(({ evaluation }) => evaluation);
  if (!known.length) return h("p", { class: "quiet" }, "None of these runs is evaluated yet. Evaluate each of them, of the same number of samples, to see their figures side by side.");
  return [
    figuresTable(known),
    said.length > 0 && h("ul", { class: "said" }, said.map((text) => h("li", null, text))),
    error && h("p", { class: "words bad" }, error),
    known.map(({ name, evaluation }) => h("p", { class: "quiet" }, `${name}: ${evaluationWords(evaluation)}.`)),
    known.map(({ name, evaluation }) => evaluation.memorisation?.words && [h("h3", null, name), memorisationWords(evaluation)]),
    known.length < withNames.length && h("p", { class: "quiet" }, `Not evaluated yet: ${withNames.filter(({ evaluation }) => !evaluation).map(({ name }) => name).join("; ")}.`),
  ];
}
