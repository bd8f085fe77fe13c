// Edit: what was learned, used on an image: varied, filled in, blended with another.

import { get, isLeft, post, postJob, remove } from "./api.js";
import { h, on, say } from "./dom.js";
import { num } from "./format.js";
import { words } from "./controls.js";
import { keepRef, pickPart, refOf } from "./destroy-images.js";
import { editForm } from "./edit-form.js";
import { maskPart } from "./edit-mask.js";
import { resultsPart } from "./edit-results.js";
import { latest } from "./latest.js";
import { blending, destroying, filling, id, inline, sym } from "./math.js";
import { ofRun } from "./of-run.js";
import { note } from "./router.js";
import { canvasOf, cut, picture, resize } from "./sprites.js";
import { about, added, ended, jobs, listen } from "./store.js";

/** Characters of a mask that an address may hold. */
const MOST_MASK = 1500;

export function showEdit(place) {
  ofRun(place, "edit", "Edit", async (run, part) => build(run, part, await about(), place));
}

function build(run, part, here, { query, signal, root }) {
  const said = words();
  let job = query.get("job");
  const one = { image: refOf(query) };
  const two = { image: refOf(query, "to-", 1) };
  const limit = here.limits.upload_bytes;
  const form = editForm(run, here, query, { send, changed: moved });
  const mask = maskPart(run.shape, query.get("mask"), { wanted: 320, beneath: knownPart(), changed: () => { said.say(""); keepAddress(); }, signal });
  const stage = stagePart(run, mask);
  const shown = resultsPart(run, { signal, said });
  const second = h("section", { class: "panel stack", "aria-label": "The other image" });
  const first = pickPart(run, one, { changed: moved, signal, zone: root, limit });
  const other = pickPart(run, two, { changed: moved, signal, zone: second, limit, name: "The other image" });
  second.append(other.strip, other.said, other.another, other.drop);
  part.append(
    h("section", { class: "panel stack", "aria-label": "What is edited" }, first.strip, first.said, first.another, first.drop),
    second,
    form.modes,
    h("div", { class: "edit-split" }, stage.element, form.element, h("div", { class: "column" }, said.element, shown.element)),
  );

  const momentOf = async (image, t, seed) => {
    const told = await post(`/runs/${run.id}/destroy`, { image, t, seed }, signal);
    return { told, sprite: await picture(told.sprite, signal) };
  };
  const ask = latest(
    async ({ image, t, seed, to }) => Promise.all([momentOf(image, t, seed), to && momentOf(to, 0, 0)]),
    ([moment, end]) => { stage.draw(moment, end); stage.said.say(""); },
    (error) => stage.said.fail(error),
  );

  function moved() {
    keepAddress();
    const { mode } = form;
    const { strength = 0, seed = 0 } = form.body();
    second.hidden = mode !== "interpolate";
    stage.show(mode);
    ask({ image: one.image, t: Math.round(strength * (run.T ?? 0)), seed, to: mode === "interpolate" ? two.image : null });
  }

  function keepAddress() {
    const kept = form.query();
    keepRef(kept, one.image);
    keepRef(kept, two.image, "to-", 1);
    const painted = mask.value;
    if (/[^A=]/.test(painted) && painted.length <= MOST_MASK) kept.set("mask", painted);
    if (job) kept.set("job", job);
    note(kept);
  }

  async function send() {
    if (form.mode === "inpaint" && mask.problem()) return said.fail(mask.problem());
    said.say("");
    const asked = { ...form.body(), image: one.image };
    if (form.mode === "inpaint") asked.mask = mask.value;
    if (form.mode === "interpolate") asked.to = two.image;
    try {
      const made = added(await postJob("edit", asked));
      const before = jobs.get(job);
      if (before && !ended(before)) remove(`/jobs/${job}`).catch(() => {}); // nobody waits for it now
      job = made.id;
      keepAddress();
      shown.follow(made);
    } catch (error) {
      said.fail(error);
    }
  }

  on(window, "resize", stage.resize, signal);
  listen("job", (now) => now.id === job && shown.follow(now), signal);
  listen("job-gone", (gone) => gone.id === job && said.fail("these results are not remembered any more; edit it again"), signal);
  stage.resize();
  moved();
  if (job) get(`/jobs/${job}`, signal).then(shown.follow).catch((error) => !isLeft(error) && said.fail(error));
}

/** Where known pixels stay. */
const knownPart = () => h("div", { class: "with-formula" }, filling().element, h("p", { class: "quiet" }, inline(() => id("y")), " is the image; ", inline(sym.m), " is 1 where it is known, 0 where you painted: known pixels stay as they are."));

/** The image as it stands for what is done with it, with the formula. */
function stagePart(run, mask) {
  const said = words();
  const figure = (canvas, symbol, name) => h("figure", null, canvas, h("figcaption", null, inline(symbol), h("span", { class: "quiet" }, name)));
  const [x0, xt, a, b] = ["The image", "What is left of it at t", "The image", "The other image"].map((name) => canvasOf(run.shape, 160, name));
  const at = h("p", { class: "quiet" });
  const noise = destroying();
  const parts = {
    vary: [h("h2", null, "How much of it is left"), h("div", { class: "pictures" }, figure(x0, sym.x0, "the image"), figure(xt, sym.xt, "where the way back begins")), h("div", { class: "with-formula" }, noise.element, at)],
    inpaint: [h("h2", null, "Paint over what is to be drawn anew"), mask.element],
    interpolate: [h("h2", null, "From one to the other"), h("div", { class: "pictures" }, figure(a, sym.x0, "the image"), figure(b, sym.x0, "the other image")), h("div", { class: "with-formula" }, blending().element, h("p", { class: "quiet" }, inline(() => id("a")), " and ", inline(() => id("b")), " are the noise that DDIM finds for the two images, ", inline(() => id("\u03c9")), " is the angle between them; ", inline(() => id("s")), " goes from 0 to 1."))],
  };
  const sections = Object.fromEntries(Object.entries(parts).map(([mode, [heading, ...inside]]) => [mode, h("div", { class: "stack" }, heading, h("div", { class: "moment" }, inside))]));
  const element = h("section", { class: "panel stack", "aria-label": "The image" }, said.element, Object.values(sections));
  return {
    element,
    said,
    show(mode) {
      for (const [name, section] of Object.entries(sections)) section.hidden = name !== mode;
    },
    draw({ told, sprite }, end) {
      for (const canvas of [x0, a, mask.image]) cut(canvas, sprite, 5, 0);
      cut(xt, sprite, 5, 1);
      if (end) cut(b, end.sprite, 5, 0);
      noise.update(told.values);
      say(at, `t = ${num(told.t, 4)} of ${num(run.T, 4)}: the strength, as a share of all steps`);
    },
    resize() {
      const room = element.clientWidth || 320;
      for (const canvas of [x0, xt, a, b]) resize(canvas, Math.min(168, (room - 64) / 2));
      mask.resize(Math.min(392, room - 40));
    },
  };
}
