// What came of an image: each result as it forms, beside what it was; a blend as a strip and a film.

import { post, remove } from "./api.js";
import { fill, h, on, say } from "./dom.js";
import { counted, num } from "./format.js";
import { button, empty, player } from "./controls.js";
import { unpacked } from "./edit-bits.js";
import { openFilm } from "./film.js";
import { progressOf } from "./queue.js";
import { Frames, canvasOf, cut, picture, resize } from "./sprites.js";
import { ended } from "./store.js";

/** The results of a job, as they form; said is where it says what goes wrong. */
export function resultsPart(run, { signal, said }) {
  let now = null;
  let frames = null;
  let tiles = [];
  const bar = progressOf();
  const stop = button("Cancel", () => remove(`/jobs/${now.id}`), { said, small: true, hidden: true });
  const line = h("p", { class: "quiet" });
  const before = canvasOf(run.shape, 128, "The image before");
  const first = h("figure", { class: "before" }, before, h("figcaption", null, "before"));
  const grid = h("div", { class: "tiles" });
  const large = canvasOf(run.shape, 224, "The way from one to the other");
  const way = player("Picture", { signal, shown: (k) => `${k + 1} of ${now.result.count}`, show: onWay });
  const film = player("Moment", { signal, shown: (k) => (now?.result ? `t = ${num(now.result.times[k], 4)}` : ""), show });
  const blend = h("div", { class: "blend", hidden: true }, large, way.element);
  const saves = h("div", { class: "buttons" });
  const none = empty("Nothing edited yet", h("p", null, "The results appear here while they form, beside the image that they were made of. Click one to see it large, to save it, or to edit it again."));
  const results = h("div", { class: "stack", hidden: true }, line, h("div", { class: "results" }, first, grid), film.element, blend, saves);
  const element = h("section", { class: "stack", "aria-label": "What came of it" }, none, h("div", { class: "row" }, bar.element, stop), results);

  async function show(k) {
    const asked = now;
    try {
      const sprite = await frames.get(k);
      if (asked.id !== now.id || film.value !== k || signal.aborted) return;
      tiles.forEach((tile, number) => cut(tile, sprite, now.result.columns, number));
      onWay(way.value);
    } catch (error) {
      if (!signal.aborted && asked.id === now.id) said.fail(error);
    }
  }

  function onWay(k) {
    if (tiles[k]) large.getContext("2d").drawImage(tiles[k], 0, 0);
  }

  /** What the image was: for one that is filled in, with what was painted over. */
  async function recall({ id, asked }) {
    first.hidden = asked.edit === "interpolate";
    before.getContext("2d").clearRect(0, 0, before.width, before.height);
    if (first.hidden) return;
    try {
      const told = await post(`/runs/${run.id}/destroy`, { image: asked.image, t: 0 }, signal);
      const sprite = await picture(told.sprite, signal);
      if (id === now.id) paint(before, sprite, asked.mask);
    } catch {
      if (id === now.id) first.hidden = true; // it is not kept any more; the results are
    }
  }

  function paint(canvas, sprite, mask) {
    cut(canvas, sprite, 5, 0);
    if (!mask) return;
    const context = canvas.getContext("2d");
    context.fillStyle = getComputedStyle(canvas).color;
    unpacked(mask, canvas.width * canvas.height).forEach((bit, k) => bit && context.fillRect(k % canvas.width, Math.floor(k / canvas.width), 1, 1));
  }

  function lay({ result, asked }) {
    const isWay = asked.edit === "interpolate";
    const room = element.clientWidth || 800;
    const wanted = Math.min(Math.max(...result.shape) > 96 ? 160 : result.count <= 8 ? 128 : 96, room / 2 - 18);
    resize(before, wanted);
    resize(large, Math.min(280, room));
    grid.className = isWay ? "tiles way" : "tiles";
    tiles = Array.from({ length: result.count }, () => canvasOf(result.shape, isWay ? 84 : wanted));
    fill(grid, tiles.map((canvas, number) => h("button", { type: "button", class: "tile", "aria-label": `Result ${number}: large, film, recipe`, onclick: () => open(number) }, canvas, result.labels[number] && h("span", { class: "tile-name" }, result.labels[number]))));
    blend.hidden = !isWay;
    way.grow(isWay ? result.count : 0);
  }

  function open(number) {
    film.halt();
    way.halt();
    openFilm(now, number, { frames, of: "state", signal, before: first.hidden ? null : before });
  }

  function offerSaving() {
    const at = `/api/jobs/${now.id}`;
    const isWay = now.asked.edit === "interpolate";
    fill(
      saves,
      h("a", { class: "button", href: `${at}/grid.png?download=1`, download: "" }, isWay ? "Save the strip as PNG" : "Save all as PNG"),
      h("a", { class: "button", href: `${at}/film.gif?download=1`, download: "" }, "Save the film as GIF"),
    );
  }

  function begin(job) {
    film.halt();
    way.halt();
    frames?.clear();
    frames = new Frames((k) => `/api/jobs/${job.id}/frames/${k}.png`);
    tiles = [];
    fill(grid);
    fill(saves);
    film.grow(0);
    said.say("");
  }

  function follow(job) {
    const isNew = now?.id !== job.id;
    if (isNew) begin(job);
    now = job;
    if (isNew) recall(job);
    none.hidden = true;
    bar.update(job);
    stop.hidden = ended(job);
    if (job.state === "failed") said.fail(job.error);
    if (job.state === "cancelled") said.say("Cancelled.");
    const { result } = job;
    results.hidden = !result;
    if (!result) return;
    if (tiles.length !== result.count) lay(job);
    const { settings, recipe } = result;
    say(line, `${counted(settings.steps, "step")} by ${settings.sampler}${job.asked.edit === "interpolate" ? "" : `, seed ${recipe.seed}`}`);
    film.follow(result.frames);
    if (job.state === "done" && !saves.firstChild) offerSaving();
  }

  on(signal, "abort", () => frames?.clear());
  return { element, follow };
}
