// Which view is shown: the address behind the # says it, with all that matters of its state.

import { announce } from "./dom.js";

let current = null;
let views = {};

/** {name, id, query} of an address such as #/runs/ID?step=3. */
function parsed(hash = location.hash) {
  const [path, search = ""] = hash.replace(/^#\/?/, "").split("?");
  const [name = "", id = ""] = path.split("/").map(decodeURIComponent);
  return { name: name || "runs", id, query: new URLSearchParams(search) };
}

/** The address of a view. */
export function hrefOf(name, id = "", query = {}) {
  const search = query instanceof URLSearchParams ? query : new URLSearchParams();
  if (search !== query) {
    for (const [key, value] of Object.entries(query)) {
      for (const one of [value].flat()) if (one !== null && one !== undefined && one !== "") search.append(key, one);
    }
  }
  const text = search.toString();
  return `#/${name}${id ? `/${encodeURIComponent(id)}` : ""}${text ? `?${text}` : ""}`;
}

/** Goes to a view; the way back leads here. */
export function go(name, id, query) {
  location.hash = hrefOf(name, id, query);
}

/** Least milliseconds between two changes of the address: browsers refuse to be told too often. */
const SELDOM = 160;
let notedAt = 0;
let noting = 0;

/** Notes the state of the view that is shown in its address, without leaving it: work that was asked for at once, for a reload is to find it. */
export function note(query) {
  const shown = current;
  const { name, id, query: there } = parsed();
  const asked = ["job", "jobs"].some((key) => query.get(key) !== there.get(key));
  clearTimeout(noting);
  const write = () => {
    if (shown !== current) return; // another view has the address by now
    notedAt = performance.now();
    history.replaceState(null, "", hrefOf(name, id, query));
  };
  const wait = notedAt + SELDOM - performance.now();
  if (asked || wait <= 0) write();
  else noting = setTimeout(write, wait);
}

/** Shows the view of the address, now and whenever that changes. */
export function route(table) {
  views = table;
  window.addEventListener("hashchange", () => show(true));
  show(false);
}

/** Shows the view of the address anew. */
export function show(moved) {
  const { name, id, query } = parsed();
  if (location.hash === "#view") return; // the skip link
  current?.abort();
  current = new AbortController();
  const root = document.getElementById("view");
  const view = views[name] ?? views.missing;
  const signal = current.signal;
  const named = (title) => {
    document.title = `${title} \u2013 Unraze studio`;
  };
  root.replaceChildren();
  root.className = `view view-${views[name] ? name : "missing"}`;
  markNav(name);
  view({ root, id, query, signal, title: named });
  if (moved) arrive(root);
}

/** The new view's heading has the focus, so that keyboard and screen reader go on from there. */
function arrive(root) {
  window.scrollTo(0, 0);
  const heading = root.querySelector("h1");
  if (!heading) return;
  heading.tabIndex = -1;
  heading.focus({ preventScroll: true });
  announce("");
}

function markNav(name) {
  const of = { train: "runs" }[name] ?? name;
  for (const link of document.querySelectorAll("#views a")) {
    if (link.dataset.view === of) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}
