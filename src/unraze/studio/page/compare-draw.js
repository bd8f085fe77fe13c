// Drawings of the same seeds, side by side.

import { get, isLeft, postJob, remove } from "./api.js";
import { fill, h, say } from "./dom.js";
import { counted } from "./format.js";
import { button, field, words } from "./controls.js";
import { picture } from "./sprites.js";
import { placeOf, progressOf } from "./queue.js";
import { added, ended, jobs, listen } from "./store.js";

/** The part that draws. `columns()` are [{letter, run, name, settings}]; kept(ids, seed, count) notes the jobs. */
export function drawPart(query, { columns, kept, signal }) {
  const said = words();
  const seed = h("input", { type: "number", min: 0, step: 1, value: query.get("seed") ?? 0 });
  const count = h("input", { type: "number", min: 1, max: 64, step: 1, value: query.get("count") ?? 16 });
  const draw = button("Draw all", drawAll, { main: true, said });
  const grids = h("div", { class: "sides" });
  let sides = [];
  const form = h("form", { class: "row wide-row", onsubmit: (event) => { event.preventDefault(); draw.click(); } }, field("Seed", seed), field("Pictures of each", count), draw);
  const element = h("section", { class: "panel stack" }, h("h2", null, "The same seeds"), form, said.element, grids);
  for (const input of [seed, count]) input.addEventListener("change", tell);

  function tell() {
    kept(sides.map((one) => one.id).filter(Boolean), Number(seed.value), Number(count.value));
  }

  async function drawAll() {
    for (const { id } of sides) if (id && jobs.has(id) && !ended(jobs.get(id))) remove(`/jobs/${id}`).catch(() => {});
    lay();
    for (const one of sides) {
      one.follow(added(await postJob("sample", { run: one.column.run, seed: Number(seed.value), count: Number(count.value), settings: one.column.settings })));
    }
    tell();
  }

  function lay() {
    sides = columns().map((column) => sideOf(column, signal));
    fill(grids, sides.map((one) => one.element));
    grids.style.setProperty("--sides", sides.length);
  }

  /** Shows the jobs of the address, where they are remembered. */
  async function recall(ids) {
    lay();
    if (ids.length !== sides.length) return;
    for (const [k, id] of ids.entries()) {
      try {
        const job = jobs.get(id) ?? (await get(`/jobs/${id}`, signal));
        if (job.run === sides[k].column.run) sides[k].follow(job);
      } catch (error) {
        if (isLeft(error)) return;
      }
    }
  }

  listen("job", (job) => sides.find((one) => one.id === job.id)?.follow(job), signal);
  return { element, lay, recall };
}

function sideOf(column, signal) {
  const bar = progressOf();
  const said = words();
  const canvas = h("canvas", { class: "pixels grid-canvas", role: "img", width: 1, height: 1, hidden: true });
  const line = h("p", { class: "quiet" });
  const link = h("a", { hidden: true }, "Look closer", h("span", { class: "unseen" }, ` at ${column.letter}`));
  const none = h("p", { class: "quiet" }, "Not drawn yet.");
  const element = h("div", { class: "side" }, h("h3", null, h("span", { class: `letter letter-${column.letter}` }, column.letter), ` ${column.name}`), none, bar.element, said.element, canvas, line, link);
  const one = { id: null, column, element, follow };
  let drawn = "";

  async function follow(job) {
    one.id = job.id;
    bar.update(job);
    none.hidden = true;
    if (job.state === "failed") said.fail(job.error);
    if (job.state === "cancelled") said.say("Cancelled.");
    link.href = placeOf(job);
    link.hidden = job.state !== "done";
    const { result } = job;
    const newest = result && `${job.id}/${result.frames}`;
    if (!result || drawn === newest) return;
    drawn = newest;
    say(line, `${result.settings.sampler}, ${counted(result.calls, "network call")}`);
    try {
      const sprite = await picture(`/api/jobs/${job.id}/frames/${result.frames - 1}.png?of=state`, signal);
      if (drawn === newest) whole(canvas, sprite, result, `${column.letter}, ${column.name}: ${counted(result.count, "picture")} of seed ${result.recipe.seed}`);
    } catch (error) {
      said.fail(error);
    }
  }
  return one;
}

/** Shows all pictures of a sprite, a little apart, as large as the room allows in whole multiples. */
function whole(canvas, sprite, { shape: [, height, width], columns, count }, label) {
  const gap = Math.max(1, Math.round(width / 28));
  const rows = Math.ceil(count / columns);
  const size = [columns * (width + gap) - gap, rows * (height + gap) - gap];
  canvas.hidden = false;
  canvas.setAttribute("aria-label", label);
  if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
  const room = Math.min(640, canvas.parentElement.clientWidth || 300);
  canvas.style.width = `${canvas.width * Math.max(1, Math.floor(room / canvas.width))}px`;
  const context = canvas.getContext("2d");
  for (let k = 0; k < count; k += 1) {
    const [column, row] = [k % columns, Math.floor(k / columns)];
    context.drawImage(sprite, column * width, row * height, width, height, column * (width + gap), row * (height + gap), width, height);
  }
}
