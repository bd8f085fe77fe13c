// Draw pictures and watch them form.

import { get, isLeft, post, postBytes, postJob, remove, sentence } from "./api.js";
import { fill, h, on, say } from "./dom.js";
import { counted, num } from "./format.js";
import { SIDES, button, dropPlace, empty, player, segments, words } from "./controls.js";
import { openFilm } from "./film.js";
import { ofRun } from "./of-run.js";
import { progressOf } from "./queue.js";
import { go, note } from "./router.js";
import { queryOfSample, sampleForm } from "./sample-form.js";
import { Frames, canvasOf, cut } from "./sprites.js";
import { about, added, ended, jobs, listen } from "./store.js";

/** What is to be said of a recipe, once the view that follows it is there. */
let taken = "";
/** The request that a recipe stands for, to the letter: the form has not all of it. */
let exactly = null;

export function showSample(place) {
  ofRun(place, "sample", "Sample", async (run, part) => build(run, part, await about(), place));
}

function build(run, part, here, { query, signal, root }) {
  const said = words();
  let job = query.get("job");
  const shown = drawingPart({ signal, said, opened: (number) => keepAddress(number) });
  const form = sampleForm(run, here, query, { draw, changed: () => { exact = null; keepAddress(); } });
  const drop = dropPlace("or drop a picture made by Unraze, to take its recipe", takeRecipe, { accept: "image/png,image/gif", signal, zone: root });
  part.append(h("div", { class: "split split-form" }, h("div", { class: "column" }, form.element, h("div", { class: "panel stack" }, h("h2", null, "From a picture"), drop.element)), h("section", { class: "column", "aria-label": "What was drawn" }, said.element, shown.element)));

  function keepAddress(number = null) {
    const kept = form.query();
    if (job) kept.set("job", job);
    if (number !== null) kept.set("picture", number);
    note(kept);
  }

  async function draw() {
    said.say("");
    try {
      const made = added(await postJob("sample", exact ?? form.body()));
      if (job) cancelled(job);
      job = made.id;
      keepAddress();
      shown.follow(made);
    } catch (error) {
      said.fail(error);
    }
  }

  async function takeRecipe(file) {
    if (file.size > here.limits.upload_bytes) throw new Error(`This file is larger than ${Math.round(here.limits.upload_bytes / 2 ** 20)} MiB, more than the studio takes.`);
    const found = await postBytes("/recipes", file);
    if (signal.aborted) return ""; // who has gone elsewhere is not fetched back
    if (!found.sample) return sentence(found.words ?? "its run is not here");
    exactly = found.sample;
    taken = found.words ? sentence(found.words) : "The recipe is taken: Draw makes the same picture again.";
    go("sample", found.run, queryOfSample(found.sample));
    return "";
  }

  listen("job", (now) => now.id === job && shown.follow(now), signal);
  listen("job-gone", (gone) => gone.id === job && said.fail("these pictures are not remembered any more; draw them again"), signal);
  drop.said.say(taken);
  taken = "";
  let exact = exactly?.run === run.id ? exactly : null;
  exactly = null;
  if (!job) return;
  get(`/jobs/${job}`, signal).then((now) => {
    shown.follow(now);
    if (query.has("picture") && now.result) shown.open(Number(query.get("picture")));
  }).catch((error) => !isLeft(error) && said.fail(error));
}

/** What was only looked at is not worth finishing once something else is asked for. */
function cancelled(id) {
  const before = jobs.get(id);
  if (before && !ended(before) && !before.keep) remove(`/jobs/${id}`).catch(() => {});
}

/** The pictures of a job as they form. */
function drawingPart({ signal, said, opened }) {
  let now = null;
  let frames = null;
  let of = "state";
  let tiles = [];
  const film = player("Moment", { signal, shown: (k) => (now?.result ? `t = ${num(now.result.times[k], 4)}` : ""), show: (k) => show(k) });
  const bar = progressOf();
  const stop = button("Cancel", () => remove(`/jobs/${now.id}`), { said, small: true });
  const line = h("p", { class: "quiet" });
  const grid = h("div", { class: "tiles" });
  const saves = h("div", { class: "buttons" });
  const kept = h("p", { class: "words", role: "status" });
  const tools = h("div", { class: "stack", hidden: true }, h("div", { class: "row" }, segments("What is shown", SIDES(), of, (to) => { of = to; grow(now.result); film.to(film.value); }), line), film.element);
  const none = empty("Nothing drawn yet", h("p", null, "Press Draw. The pictures appear while they form; click one to see its film, its recipe and its nearest training images."));
  const element = h("div", { class: "stack" }, none, h("div", { class: "row" }, bar.element, stop), tools, grid, saves, kept);
  stop.hidden = true;

  async function show(k) {
    const asked = now;
    try {
      const sprite = await frames.get(k, of);
      if (asked?.id !== now.id || film.value !== k || signal.aborted) return;
      tiles.forEach((tile, number) => cut(tile.canvas, sprite, now.result.columns, number));
    } catch (error) {
      if (!signal.aborted && asked?.id === now.id) said.fail(error);
    }
  }

  function lay(result) {
    const [, height, width] = result.shape;
    const usual = Math.max(width, height) > 96 ? 160 : result.count <= 4 ? 224 : result.count <= 20 ? 128 : 96;
    const room = element.clientWidth || 800;
    const wanted = Math.min(usual, room / (result.count <= 4 ? 2 : 3) - 18);
    tiles = Array.from({ length: result.count }, (_, number) => {
      const canvas = canvasOf(result.shape, wanted);
      const name = result.labels[number];
      const element_ = h("button", { type: "button", class: "tile", "aria-label": `Picture ${number}${name ? `, ${name}` : ""}: film, recipe, neighbours`, onclick: () => open(number) }, canvas, name && h("span", { class: "tile-name" }, name));
      return { canvas, element: element_ };
    });
    fill(grid, tiles.map((tile) => tile.element));
  }

  function open(number) {
    if (!now?.result || number >= now.result.count) return;
    film.halt();
    opened(number);
    openFilm(now, number, { frames, of, signal, closed: () => !signal.aborted && opened(null) });
  }

  function offerSaving() {
    const at = `/api/jobs/${now.id}`;
    fill(
      saves,
      h("a", { class: "button", href: `${at}/grid.png?download=1`, download: "" }, "Save all as PNG"),
      h("a", { class: "button", href: `${at}/film.gif?download=1`, download: "" }, "Save the film as GIF"),
      !now.result.folder && button("Keep in the run's folder", async () => follow(added(await post(`/jobs/${now.id}/keep`))), { said }),
    );
    say(kept, now.result.folder ? `Kept in ${now.result.folder}` : "");
  }

  /** As many moments as there are of what is shown: the last state is not yet estimated. */
  function grow(result) {
    film.follow(of === "estimate" ? result.estimates : result.frames);
  }

  function begin(job) {
    film.halt();
    frames?.clear();
    frames = new Frames((k, what) => `/api/jobs/${job.id}/frames/${k}.png?of=${what}`);
    tiles = [];
    fill(grid);
    fill(saves);
    say(kept, "");
    film.grow(0);
    said.say("");
  }

  function follow(job) {
    if (now?.id !== job.id) begin(job);
    now = job;
    none.hidden = true;
    bar.update(job);
    stop.hidden = ended(job);
    if (job.state === "failed") said.fail(job.error);
    if (job.state === "cancelled") said.say("Cancelled.");
    const { result } = job;
    tools.hidden = !result;
    if (!result) return;
    if (tiles.length !== result.count) lay(result);
    say(line, `${result.settings.sampler}, ${counted(result.calls, "network call")}, seed ${result.recipe.seed}`);
    grow(result);
    if (job.state === "done" && (!saves.firstChild || result.folder)) offerSaving();
  }

  on(signal, "abort", () => frames?.clear());
  return { element, follow, open };
}
