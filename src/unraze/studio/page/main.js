// Where the page begins: the session, the frame around the views, and which views there are.

import { ApiError, GONE, get, post, whenSessionIsLost } from "./api.js";
import { fill, h, say } from "./dom.js";
import { mountQueue } from "./queue.js";
import { hrefOf, route, show } from "./router.js";
import { about, connect, disconnect, listen } from "./store.js";
import { showRuns } from "./view-runs.js";
import { showRun } from "./view-run.js";
import { showTrain } from "./view-train.js";
import { showSample } from "./view-sample.js";
import { showDestroy } from "./view-destroy.js";
import { showEdit } from "./view-edit.js";
import { showCompare } from "./view-compare.js";
import { showData } from "./view-data.js";

const VIEWS = [
  ["runs", "Runs"],
  ["sample", "Sample"],
  ["destroy", "Destroy", " and Reconstruct"],
  ["edit", "Edit"],
  ["compare", "Compare"],
  ["data", "Data"],
];

const TABLE = {
  runs: (place) => (place.id ? showRun(place) : showRuns(place)),
  train: showTrain,
  sample: showSample,
  destroy: showDestroy,
  edit: showEdit,
  compare: showCompare,
  data: showData,
  missing: showMissing,
};

function showMissing({ root, title }) {
  title("Not here");
  root.append(h("h1", null, "There is no such view"), h("p", null, h("a", { href: "#/runs" }, "See the runs")));
}

/** A token in the address buys a session, and is taken out of the address at once. */
async function enter() {
  const given = new URLSearchParams(location.hash.slice(1));
  const token = location.hash.startsWith("#token=") ? given.get("token") : null;
  if (token === null) {
    await get("/about");
    return;
  }
  const to = given.get("to") ?? "/runs";
  history.replaceState(null, "", `#${to.startsWith("/") ? to : `/${to}`}`);
  await post("/session", { token });
}

function showLocked(words) {
  disconnect();
  say(document.getElementById("connection"), "");
  document.title = "Unraze studio";
  document.body.classList.add("locked");
  fill(
    document.getElementById("view"),
    h("h1", null, "This studio is locked"),
    h("p", null, "Open the address that ", h("code", null, "unraze studio"), " printed in the terminal, with all that stands behind the #."),
    h("p", { class: "quiet" }, words ?? "Each start of the studio prints a new one; an old address, or this one without it, does not open it."),
  );
}

function showUnreachable(error) {
  fill(
    document.getElementById("view"),
    h("h1", null, "The studio does not answer"),
    h("p", null, error.message),
    h("p", null, "Start it with ", h("code", null, "unraze studio"), ", then reload this page."),
  );
}

function mountNav() {
  const nav = document.getElementById("views");
  fill(nav, VIEWS.map(([view, name, more]) => h("a", { href: hrefOf(view), "data-view": view }, name, more && h("span", { class: "long" }, more))));
}

function mountTheme() {
  const button = document.getElementById("theme-button");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const now = () => document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
  const tell = () => say(button, now() === "dark" ? "Light" : "Dark");
  button.addEventListener("click", () => {
    const to = now() === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = to;
    try {
      localStorage.setItem("unraze-theme", to);
    } catch {
      // it holds until the tab is closed
    }
    tell();
  });
  button.title = "Change between the light and the dark theme";
  dark.addEventListener("change", tell);
  tell();
}

function mountConnection() {
  const place = document.getElementById("connection");
  listen("connection", (broken) => {
    say(place, broken);
    const failed = [...document.querySelectorAll("#view .words.bad")].some((words) => words.textContent === GONE);
    if (!broken && failed) show(false); // what could not be had can be had now
  });
}

/** A file that is dropped beside a place for it is not opened in place of the studio. */
function mountDrops() {
  for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());
}

function mountSkip() {
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address belongs to the views
    document.getElementById("view").focus();
  });
}

async function begin() {
  mountTheme();
  mountSkip();
  mountDrops();
  mountConnection();
  window.addEventListener("hashchange", (event) => {
    if (location.hash.startsWith("#token=")) {
      event.stopImmediatePropagation();
      location.reload();
    }
  });
  try {
    await enter();
  } catch (error) {
    if (error instanceof ApiError && error.status === 0) return showUnreachable(error);
    return showLocked(error.message);
  }
  whenSessionIsLost(() => showLocked());
  mountNav();
  mountQueue(document.getElementById("queue"), document.getElementById("queue-button"));
  if (!location.hash.startsWith("#/")) history.replaceState(null, "", "#/runs");
  about().catch(() => {});
  connect();
  route(TABLE);
}

begin();
