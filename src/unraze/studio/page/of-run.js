// Views of one run that draws: which run, and what to say where there is none.

import { get, isLeft } from "./api.js";
import { h } from "./dom.js";
import { choice, empty, words } from "./controls.js";
import { go, hrefOf } from "./router.js";
import { listen, runs, runsInOrder, state } from "./store.js";

let last = null;

/** Runs that may have something to draw with: only the run's own answer tells for certain. */
export const drawers = () => runsInOrder().filter((run) => !["empty", "unreadable", "starting"].includes(run.state));

/** Shows `build(run, part)` for the run of the address, or of the one looked at last. */
export function ofRun(place, view, heading, build) {
  const { root, id, signal, title } = place;
  title(heading);
  const picker = h("div", { class: "head-pick" });
  const part = h("div", { class: "part" });
  const said = words();
  root.append(h("div", { class: "head" }, h("h1", null, heading), picker), said.element, part);
  if (!state.loaded) {
    said.say("Looking for runs \u2026");
    listen("lists", once(begin), signal);
  } else begin();

  function begin() {
    said.say("");
    const there = drawers();
    const wanted = id || (runs.has(last) && there.some((run) => run.id === last) ? last : (there.find((run) => run.state !== "failed") ?? there[0])?.id);
    if (!wanted) {
      part.append(noDrawers());
      return;
    }
    if (!id) {
      history.replaceState(null, "", hrefOf(view, wanted, place.query));
    }
    last = wanted;
    picker.append(pickerOf(view, wanted));
    load(wanted);
  }

  async function load(wanted) {
    said.say("Reading the run \u2026");
    try {
      const run = await get(`/runs/${wanted}`, signal);
      title(`${heading}, ${run.name}`);
      said.say("");
      if (!run.can_sample) {
        part.append(notYet(run));
        return;
      }
      await build(run, part);
    } catch (error) {
      if (!isLeft(error)) said.fail(error);
    }
  }
}

function once(call) {
  let done = false;
  return () => {
    if (!done) call();
    done = true;
  };
}

function pickerOf(view, id) {
  const there = drawers();
  if (!there.some((run) => run.id === id)) there.unshift(runs.get(id) ?? { id, name: "a run that is gone" });
  const select = choice(there.map((run) => [run.id, run.name]), id, { id: "run-choice", onchange: () => go(view, select.value) });
  return h("div", { class: "row" }, h("label", { for: "run-choice" }, "Run"), select, h("a", { href: hrefOf("runs", id) }, "About this run"));
}

function noDrawers() {
  return empty(
    "No run to draw from yet",
    h("p", null, "Pictures are drawn from a run: a network that was trained on images."),
    h("p", null, h("a", { class: "button main", href: hrefOf("train") }, "Start a training")),
    h("p", null, "or, in a terminal:"),
    h("pre", null, "unraze train fashion-mnist"),
  );
}

function notYet(run) {
  const going = ["running", "starting"].includes(run.state);
  return empty(
    "This run has no checkpoint yet",
    h("p", null, run.error ?? (going ? "It is being trained; the first checkpoint comes soon. Come back then, or choose another run above." : "Go on with its training, or choose another run above.")),
    h("p", null, h("a", { class: "button", href: hrefOf("runs", run.id) }, `See ${run.name}`)),
  );
}
