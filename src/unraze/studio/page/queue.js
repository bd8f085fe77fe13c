// The queue, seen from everywhere: what waits, what runs and how far it is, what came of it.

import { remove } from "./api.js";
import { announce, fill, h, say, set } from "./dom.js";
import { duration } from "./format.js";
import { hrefOf } from "./router.js";
import { ended, jobs, listen } from "./store.js";
import { button, words } from "./controls.js";
import { keepRef } from "./destroy-images.js";
import { queryOfEdit } from "./edit-form.js";
import { queryOfSample } from "./sample-form.js";

const STATES = { waiting: "waits", running: "runs", done: "done", failed: "failed", cancelled: "cancelled" };

/** Where the page shows what a job is about. */
export function placeOf(job) {
  switch (job.kind) {
    case "sample":
      return hrefOf("sample", job.run, { ...queryOfSample(job.asked), job: job.id });
    case "walk":
      return hrefOf("destroy", job.run, walkQuery(job));
    case "edit":
      return hrefOf("edit", job.run, editQuery(job));
    case "nearest":
      return hrefOf("sample", job.run, { job: job.asked.job, picture: job.asked.image });
    case "calls":
      return hrefOf("compare", "", { run: job.run });
    case "evaluate":
      return hrefOf("runs", job.run);
    case "data":
      return hrefOf("data", "", { source: job.asked.source, job: job.id });
    case "estimate":
      return hrefOf("train", "", { source: job.asked.source });
    default:
      return null;
  }
}

function walkQuery({ id, asked }) {
  const query = new URLSearchParams({ t: asked.t, seed: asked.seed, steps: asked.steps, eta: asked.eta, sigma: asked.sigma, walk: id });
  if (asked.class !== null) query.set("class", asked.class);
  keepRef(query, asked.image);
  return query;
}

function editQuery({ id, asked }) {
  const query = queryOfEdit(asked);
  keepRef(query, asked.image);
  if (asked.to) keepRef(query, asked.to, "to-", 1);
  if (asked.mask) query.set("mask", asked.mask);
  query.set("job", id);
  return query;
}

/** How far a job is, in words: "3 of 10, 12 s left". */
function progressWords(job) {
  if (job.state === "waiting") return job.position ? `waits; ${job.position} before it` : "next in the queue";
  if (job.state !== "running") return STATES[job.state];
  const far = job.total > 1 ? `${job.stage ?? "working"}, ${job.done} of ${job.total}` : (job.stage ?? "working");
  const left = duration(job.seconds_left);
  return left ? `${far}, ${left} left` : far;
}

/** A progress bar of a job, with its words; update(job) moves it. */
export function progressOf() {
  const bar = h("progress", { max: 1, "aria-label": "Progress" });
  const said = h("span", { class: "progress-words" });
  const element = h("div", { class: "progress", hidden: true }, bar, said);
  return {
    element,
    update(job) {
      element.hidden = !job || ended(job);
      if (element.hidden) return;
      if (job.state === "running" && job.total > 1) bar.value = job.done / job.total;
      else bar.removeAttribute("value");
      say(said, progressWords(job));
    },
  };
}

/** The panel and its button. */
export function mountQueue(panel, opener) {
  const said = words();
  const list = h("ol", { class: "jobs" });
  const none = h("p", { class: "quiet" }, "Nothing is waiting. What you draw, walk, measure or look at is queued here, one thing at a time.");
  const close = button("Close", () => toggle(false), { small: true });
  const clear = button("Forget what has ended", forgetEnded, { small: true, said });
  fill(panel, h("div", { class: "queue-head" }, h("h2", null, "Queue"), close), none, list, clear, said.element);
  const rows = new Map();
  const known = new Map();

  function toggle(open) {
    panel.hidden = !open;
    opener.setAttribute("aria-expanded", String(open));
    if (open) close.focus();
    else opener.focus();
  }
  opener.addEventListener("click", () => toggle(panel.hidden));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !panel.hidden && !document.querySelector("dialog[open]")) toggle(false);
  });

  async function forgetEnded() {
    for (const job of [...jobs.values()].filter(ended)) await remove(`/jobs/${job.id}`);
  }

  function update(job) {
    if (!rows.has(job.id)) {
      rows.set(job.id, jobRow(job, said));
      list.prepend(rows.get(job.id).element);
    }
    rows.get(job.id).update(job);
    if (known.get(job.id) && known.get(job.id) !== job.state && ended(job) && job.kind !== "walk") announce(`${job.title}: ${STATES[job.state]}.`);
    known.set(job.id, job.state);
    summarise();
  }

  function gone({ id }) {
    rows.get(id)?.element.remove();
    rows.delete(id);
    known.delete(id);
    summarise();
  }

  function summarise() {
    const open = [...jobs.values()].filter((job) => !ended(job));
    const running = open.find((job) => job.state === "running");
    const share = running?.total > 1 ? ` ${Math.round((100 * running.done) / running.total)} %` : "";
    fill(
      opener,
      "Queue",
      open.length > 0 && h("span", { class: "count" }, String(open.length)),
      running && h("span", { class: "queue-now" }, `${running.title}${share}`),
    );
    none.hidden = rows.size > 0;
    set(clear, "hidden", ![...jobs.values()].some(ended));
  }

  listen("job", update);
  listen("job-gone", gone);
  listen("lists", () => {
    for (const id of [...rows.keys()]) if (!jobs.has(id)) gone({ id });
    for (const job of jobs.values()) update(job);
    summarise();
  });
  summarise();
}

function jobRow(job, said) {
  const title = h("span", { class: "job-title" });
  const state = h("span", { class: "job-state" });
  const bar = progressOf();
  const wrong = h("p", { class: "words bad" });
  const place = placeOf(job);
  const link = place && h("a", { class: "small", href: place }, "Show", h("span", { class: "unseen" }, ` ${job.title}`));
  const end = button("", () => remove(`/jobs/${job.id}`), { small: true, said });
  const element = h("li", { class: "job" }, h("div", { class: "job-head" }, title, state), bar.element, wrong, h("div", { class: "buttons" }, link, end));
  return {
    element,
    update(now) {
      say(title, now.title);
      say(state, now.state === "waiting" || now.state === "running" ? "" : STATES[now.state]);
      element.dataset.state = now.state;
      bar.update(now);
      say(wrong, now.state === "failed" ? (now.error ?? "It failed.") : "");
      const word = ended(now) ? "Forget" : "Cancel";
      if (end.dataset.word !== word) {
        end.dataset.word = word;
        fill(end, word, h("span", { class: "unseen" }, ` ${now.title}`));
      }
      if (link) link.hidden = now.state === "cancelled" || now.state === "failed";
    },
  };
}
