// One picture from near: its film, its recipe, its nearest training images.

import { isLeft, postJob } from "./api.js";
import { fill, h, on, say } from "./dom.js";
import { num } from "./format.js";
import { SIDES, button, facts, folded, player, segments, text, words } from "./controls.js";
import { hrefOf } from "./router.js";
import { canvasOf, cut, picture } from "./sprites.js";
import { progressOf } from "./queue.js";
import { added, ended, listen, newestJob } from "./store.js";

/** Opens the picture `number` of a drawing, or the result of an edit, in a dialog. `frames` has its sprites;
 * `before` is a canvas of what the image was. */
export function openFilm(opened, number, { frames, of, signal, closed, before }) {
  const ending = new AbortController();
  const { shape, columns, labels } = opened.result;
  let job = opened;
  let { times } = job.result;
  const isEdit = job.kind === "edit";
  const wanted = Math.min(420, window.innerWidth - 80);
  const canvas = canvasOf(shape, before ? wanted / 2 : wanted, `Picture ${number}`);
  const caption = h("p", { class: "quiet film-time" });
  let shown = of;
  const film = player("Moment", { signal: ending.signal, shown: (k) => `t = ${num(times[k], 4)}`, show: (k) => show(k) });
  const said = words();
  const close = button("Close", () => dialog.close(), { small: true });
  const right = h("div", { class: "film-right" });
  const dialog = h(
    "dialog",
    { class: "film", "aria-labelledby": "film-title" },
    h("div", { class: "queue-head" }, h("h2", { id: "film-title" }, `Picture ${number}${labels[number] ? `, ${labels[number]}` : ""}`), close),
    h("div", { class: "film-split" },
      h("div", { class: "film-left" },
        before ? h("div", { class: "pictures" }, h("figure", null, copied(before, shape, wanted / 2), h("figcaption", null, "before")), h("figure", null, canvas, h("figcaption", null, "after"))) : canvas,
        caption,
        !isEdit && segments("What is shown", SIDES(), of, (to) => { shown = to; grow(); film.to(film.value); }),
        film.element),
      right),
  );

  function explain() {
    const done = job.state === "done";
    fill(
      right,
      done && h("div", { class: "buttons" },
        h("a", { class: "button", href: `/api/jobs/${job.id}/images/${number}.png?download=1`, download: "" }, "Save PNG"),
        h("a", { class: "button", href: hrefOf("destroy", job.run, { drawn: `${job.id}.${number}` }) }, "Destroy this one"),
        h("a", { class: "button", href: hrefOf("edit", job.run, { drawn: `${job.id}.${number}` }) }, "Edit this one")),
      recipePart(job, number),
      isEdit ? null : done ? nearestPart(job, number, ending.signal) : h("p", { class: "quiet" }, "Its nearest training images can be looked for once it is drawn."),
      said.element,
    );
  }

  /** It may be opened while it forms: then its film grows. */
  function follow(now) {
    if (now.id !== job.id || !now.result) return;
    const ended_ = job.state !== now.state;
    job = now;
    times = job.result.times;
    grow();
    if (ended_) explain();
  }

  /** As many moments as there are of what is shown: the last state is not yet estimated. */
  function grow() {
    film.follow(shown === "estimate" ? job.result.estimates : job.result.frames);
  }

  async function show(k) {
    say(caption, k >= times.length - 1 && job.state === "done" ? "The picture itself, t = 0" : `At t = ${num(times[k], 4)}, ${shown === "state" ? "the state of the walk" : "what the network takes it for"}`);
    try {
      const sprite = await frames.get(k, shown);
      if (!ending.signal.aborted && film.value === k) cut(canvas, sprite, columns, number);
    } catch (error) {
      said.fail(error);
    }
  }

  dialog.addEventListener("close", () => {
    ending.abort();
    dialog.remove();
    closed?.();
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  on(signal, "abort", () => dialog.close(), ending.signal);
  listen("job", follow, ending.signal);
  explain();
  document.body.append(dialog);
  grow();
  dialog.showModal();
  close.focus();
}

function recipePart(job, number) {
  const { settings, recipe, calls } = job.result;
  const pairs = [
    ["Run", recipe.run],
    ["Step", recipe.step],
    recipe.strength !== undefined && ["Strength", num(recipe.strength)],
    recipe.method !== undefined && ["Method", recipe.method],
    recipe.edit !== "interpolate" && ["Seed", recipe.seed],
    ["Number", number],
    ["Sampler", calls ? `${settings.sampler}, ${calls} network calls` : `${settings.sampler}, ${settings.steps} steps`],
    settings.guidance !== 1 && ["Guidance", num(settings.guidance)],
  ];
  return h("section", null, h("h3", null, "Recipe"), facts(pairs.map((pair) => pair && [pair[0], String(pair[1] ?? "\u2013")])), folded("All of it", () => text(JSON.stringify({ ...recipe, [recipe.kind === "edit" ? "result" : "image"]: number }, null, 2), "Recipe")));
}

function copied(canvas, shape, wanted) {
  const copy = canvasOf(shape, wanted, "The image before");
  copy.getContext("2d").drawImage(canvas, 0, 0);
  return copy;
}

function nearestPart(job, image, signal) {
  const said = words();
  const bar = progressOf();
  const shown = h("div");
  const same = (one) => one.kind === "nearest" && one.asked.job === job.id && one.asked.image === image;
  const find = button("Find the nearest training images", async () => follow(added(await postJob("nearest", { job: job.id, image, count: 8 }))), { said });
  const element = h("section", null, h("h3", null, "Nearest training images"), shown, find, bar.element, said.element);

  async function follow(now) {
    bar.update(now);
    find.hidden = !ended(now) || now.state === "done";
    if (now.state === "failed") said.fail(now.error);
    if (now.state !== "done" || shown.firstChild) return;
    try {
      const sprite = await picture(`/api/jobs/${now.id}/sprite.png`, signal);
      if (!shown.firstChild) fill(shown, neighbours(now.result, sprite));
    } catch (error) {
      if (!isLeft(error)) said.fail(error);
    }
  }

  listen("job", (now) => same(now) && follow(now), signal);
  const before = newestJob(same);
  if (before) follow(before);
  return element;
}

function neighbours(result, sprite) {
  const shown = (number, name, detail) => {
    const canvas = canvasOf(result.shape, 72, name);
    cut(canvas, sprite, result.columns, number);
    return h("li", null, canvas, h("span", null, name), detail && h("span", { class: "quiet" }, detail));
  };
  return [
    h("ul", { class: "neighbours" }, shown(0, "This one"), result.neighbours.map((one, k) => shown(k + 1, one.label ?? `No. ${one.number}`, num(one.distance)))),
    h("p", { class: "quiet" }, result.words),
  ];
}
