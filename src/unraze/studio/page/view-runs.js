// All runs of the folder, as they are now.

import { counted, ago, interval, num, shapeWords, whole } from "./format.js";
import { fill, h, say } from "./dom.js";
import { empty } from "./controls.js";
import { go, hrefOf, note } from "./router.js";
import { listen, runs, runsInOrder, state } from "./store.js";

export const STATES = {
  running: "training",
  starting: "starting",
  done: "done",
  stopped: "stopped",
  failed: "failed",
  empty: "not begun",
  unreadable: "cannot be read",
};

/** A run's state, as a word with a mark; never by colour alone. */
export function badge(at) {
  return h("span", { class: `badge badge-${at}` }, STATES[at] ?? at);
}

/** The picture of a run, or a place for one. */
export function thumbnail(run) {
  return run.thumbnail
    ? h("img", { class: "thumb pixels", src: run.thumbnail, alt: "", width: 64, height: 64, loading: "lazy" })
    : h("span", { class: "thumb thumb-none", "aria-hidden": "true" });
}

export function showRuns({ root, query, signal, title }) {
  title("Runs");
  const chosen = new Set();
  const rows = new Map();
  const find = h("input", { type: "search", value: query.get("find") ?? "", "aria-label": "Find runs by name, source, preset or state", placeholder: "Find a run" });
  const count = h("p", { class: "quiet", role: "status" });
  const compare = h("button", { type: "button" }, "Compare");
  const body = h("tbody");
  const table = h(
    "table",
    { class: "runs" },
    h("caption", { class: "unseen" }, "Runs, those that changed last first"),
    h("thead", null, h("tr", null, head("Compare", "unseen"), head("Picture", "unseen"), head("Run"), head("State"), head("Step", "", "number"), head("Loss", "", "number"), head("KID, 95 %", "", "number"), head("Images"), head("Changed"))),
    body,
  );
  const nothing = h("div");
  const list = h("div", { class: "scroll" }, table);
  root.append(
    h("div", { class: "head" }, h("h1", null, "Runs"), h("a", { class: "button main", href: hrefOf("train") }, "Start a training")),
    h("div", { class: "tools" }, find, compare, count),
    nothing,
    list,
  );

  compare.addEventListener("click", () => go("compare", "", { run: [...chosen] }));
  find.addEventListener("input", () => {
    note(find.value ? new URLSearchParams({ find: find.value }) : new URLSearchParams());
    filter();
  });

  function choose(id, is) {
    if (is) chosen.add(id);
    else chosen.delete(id);
    const fits = chosen.size >= 1 && chosen.size <= 4;
    compare.disabled = !fits;
    say(compare, chosen.size > 4 ? "Compare: at most 4" : chosen.size ? `Compare ${counted(chosen.size, "run")}` : "Compare: choose runs");
  }

  function put(run) {
    if (!rows.has(run.id)) rows.set(run.id, runRow(run, choose));
    rows.get(run.id).update(run);
    return rows.get(run.id).element;
  }

  function all() {
    for (const id of [...rows.keys()]) if (!runs.has(id)) drop(id);
    const there = runsInOrder().map(put);
    if (there.some((row, k) => body.children[k] !== row)) body.append(...there);
    filter();
  }

  function drop(id) {
    rows.get(id)?.element.remove();
    rows.delete(id);
    choose(id, false);
  }

  function filter() {
    const wanted = find.value.trim().toLowerCase();
    let seen = 0;
    for (const [id, row] of rows) {
      const run = runs.get(id);
      const fits = !wanted || [run.name, run.source, run.preset, STATES[run.state]].some((word) => word?.toLowerCase().includes(wanted));
      row.element.hidden = !fits;
      seen += fits ? 1 : 0;
    }
    const any = rows.size > 0;
    for (const one of [list, find, compare, count]) one.hidden = !any;
    say(count, wanted ? `${whole(seen)} of ${counted(rows.size, "run")}` : `${counted(rows.size, "run")} in the folder ${state.folder}`);
    fill(nothing, !state.loaded ? h("p", { class: "quiet" }, "Looking for runs \u2026") : !any && noRuns());
  }

  listen("lists", all, signal);
  listen("run", (run) => {
    if (!rows.has(run.id)) body.prepend(put(run));
    else put(run);
    filter();
  }, signal);
  listen("run-gone", ({ id }) => { drop(id); filter(); }, signal);
  choose("", false);
  all();
}

function head(text, hidden, kind) {
  return h("th", { scope: "col", class: kind }, hidden ? h("span", { class: hidden }, text) : text);
}

function noRuns() {
  return empty(
    "No runs yet",
    h("p", null, "A run is a folder with a network that was trained on some images. There is none in ", h("code", null, state.folder), "."),
    h("p", null, h("a", { class: "button main", href: hrefOf("train") }, "Start a training")),
    h("p", null, "or, in a terminal:"),
    h("pre", null, "unraze train fashion-mnist"),
  );
}

function runRow(run, choose) {
  const box = h("input", { type: "checkbox", "aria-label": `Compare ${run.name}`, onchange: () => choose(run.id, box.checked) });
  const picture = h("td", { class: "cell-thumb" });
  const link = h("a", { href: hrefOf("runs", run.id), class: "run-name" });
  const detail = h("span", { class: "quiet" });
  const cells = Object.fromEntries(["state", "step", "loss", "quality", "images", "changed"].map((name) => [name, h("td", { class: `cell-${name}` })]));
  const names = { step: "Step", loss: "Loss", quality: "KID", images: "Images", changed: "Changed" };
  for (const [name, cell] of Object.entries(cells)) if (names[name]) cell.dataset.name = names[name];
  const element = h("tr", null, h("td", { class: "cell-box" }, box), picture, h("th", { scope: "row", class: "cell-run" }, link, detail), Object.values(cells));
  let src = null;
  return {
    element,
    update(now) {
      if (src !== now.thumbnail || !picture.firstChild) {
        src = now.thumbnail;
        fill(picture, thumbnail(now));
      }
      say(link, now.name);
      say(detail, now.error && now.state !== "running" ? now.error : [now.preset, now.source].filter(Boolean).join(", "));
      detail.classList.toggle("bad", Boolean(now.error) && now.state !== "running");
      if (cells.state.dataset.at !== now.state) {
        cells.state.dataset.at = now.state;
        fill(cells.state, badge(now.state));
      }
      say(cells.step, now.steps ? `${whole(now.step)} of ${whole(now.steps)}` : whole(now.step));
      say(cells.loss, num(now.loss));
      say(cells.quality, interval(now.quality));
      say(cells.images, shapeWords(now.shape));
      say(cells.changed, ago(now.changed));
    },
  };
}
