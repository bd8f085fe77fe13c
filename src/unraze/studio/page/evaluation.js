// Evaluations: figures with their intervals and floors, of one run or of several side by side.

import { get, isLeft, postJob, sentence } from "./api.js";
import { fill, h } from "./dom.js";
import { num, whole } from "./format.js";
import { intervalBar } from "./charts.js";
import { button, folded, words } from "./controls.js";
import { progressOf } from "./queue.js";
import { added, ended, newestJob } from "./store.js";

/** A table of figures: a row for each, a column for each of [{name, evaluation}]. */
export function figuresTable(columns) {
  const rows = figureRows(columns);
  if (!rows.length) return h("p", { class: "quiet" }, "This evaluation has no figures.");
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": "Figures" },
    h(
      "table",
      { class: columns.length <= 2 ? "figures figures-few" : "figures" },
      h("caption", null, "Value, 95 % interval; the upright line marks the floor: what real images reach among themselves."),
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "Figure"), columns.map(({ name }) => h("th", { scope: "col", class: "number" }, name)))),
      rows.map(({ space, figures }) => h("tbody", null, h("tr", { class: "space" }, h("th", { scope: "rowgroup", colspan: columns.length + 1 }, `In ${space}`)), figures.map(figureRow))),
    ),
  );
}

function figureRows(columns) {
  const spaces = [...new Set(columns.flatMap(({ evaluation }) => evaluation?.spaces.map((one) => one.name) ?? []))];
  return spaces.map((space) => {
    const of = columns.map(({ evaluation }) => evaluation?.spaces.find((one) => one.name === space)?.figures ?? []);
    const names = [...new Set(of.flat().map((figure) => figure.name))];
    return { space, figures: names.map((name) => ({ name, cells: of.map((figures) => figures.find((figure) => figure.name === name) ?? null) })) };
  });
}

function figureRow({ name, cells }) {
  const known = cells.filter((cell) => cell && cell.value !== null);
  const all = known.flatMap((cell) => [cell.value, cell.low, cell.high, cell.floor]).filter((value) => value !== null && value !== undefined && Number.isFinite(value));
  const reach = all.length ? [Math.min(...all), Math.max(...all)] : [0, 1];
  const notes = [...new Set(known.map((cell) => cell.note).filter(Boolean))];
  const said = [known[0]?.better && `${known[0].better} is better`, ...notes].filter(Boolean).join("; ");
  return h(
    "tr",
    null,
    h("th", { scope: "row" }, name, said && h("span", { class: "quiet" }, said)),
    cells.map((cell) => h("td", { class: "number" }, cell ? figureCell(cell, reach) : "\u2013")),
  );
}

function figureCell(cell, reach) {
  if (cell.value === null) return h("span", { class: "quiet not-known" }, cell.note ?? "not known");
  const ends = cell.low !== null && cell.low !== undefined ? `${num(cell.low)} to ${num(cell.high)}` : "";
  const floor = cell.floor !== null && cell.floor !== undefined ? `floor ${num(cell.floor)}` : "";
  return h("div", { class: "figure-cell" }, h("span", { class: "figure-value" }, num(cell.value, 4)), intervalBar(cell, reach), h("span", { class: "quiet" }, ends), h("span", { class: "quiet" }, floor));
}

/** What an evaluation is of, in a line. */
export function evaluationWords(evaluation) {
  const made = new Date(evaluation.made);
  const when = Number.isNaN(made.getTime()) ? evaluation.made : made.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
  const how = evaluation.settings?.sampler ? `, by ${evaluation.settings.sampler} in ${evaluation.settings.steps} steps` : "";
  return `${whole(evaluation.generated)} samples of step ${whole(evaluation.step)}${how}; ${when}`;
}

/** The sentence on whether it copies its training images. */
export function memorisationWords(evaluation) {
  return evaluation.memorisation?.words ? h("p", null, sentence(evaluation.memorisation.words)) : null;
}

/** The part of a run's page that shows its evaluations and asks for new ones. */
export function evaluationPart(id, signal) {
  const said = words();
  const bar = progressOf();
  const shown = h("div");
  const count = h("input", { type: "number", min: 100, max: 100000, step: 100, value: 2000, id: "evaluate-count" });
  const ask = h(
    "div",
    { class: "row" },
    h("label", { for: "evaluate-count" }, "Samples"),
    count,
    button("Evaluate", async () => heed(added(await postJob("evaluate", { run: id, count: Number(count.value) }))), { said }),
  );
  const element = h("section", null, h("h2", null, "Evaluation"), shown, ask, bar.element, said.element);
  let asked = "";

  function heed(job) {
    bar.update(job);
    if (job.state === "failed") said.fail(job.error);
    if (job.state === "done" && asked !== job.id) {
      asked = job.id;
      load();
    }
  }

  async function load() {
    try {
      const { evaluations } = await get(`/runs/${id}/evaluations`, signal);
      fill(shown, evaluations.length ? present(evaluations) : h("p", { class: "quiet" }, "Not evaluated yet. An evaluation draws samples and compares them with held-out images; it takes minutes on two cores and is kept in the run's folder."));
    } catch (error) {
      if (!isLeft(error)) said.fail(error);
    }
  }

  let began = false;
  return {
    element,
    heed,
    update(run) {
      ask.hidden = !run.can_sample;
      element.hidden = !run.can_sample;
      if (!began && run.can_sample) {
        began = true;
        load();
        const job = newestJob((one) => one.kind === "evaluate" && one.run === id && !ended(one));
        if (job) heed(job);
      }
    },
  };
}

function present([newest, ...older]) {
  return [
    h("p", { class: "quiet" }, `${evaluationWords(newest)}.`),
    memorisationWords(newest),
    figuresTable([{ name: "This run", evaluation: newest }]),
    newest.note && h("p", { class: "quiet" }, newest.note),
    older.length > 0 && folded(`Earlier evaluations (${older.length})`, () => older.map((one) => [h("h3", null, evaluationWords(one)), figuresTable([{ name: "This run", evaluation: one }])])),
  ];
}

