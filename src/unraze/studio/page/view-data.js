// Sets of images: what is in them, and what would spoil a training.

import { get, isLeft, postJob, remove } from "./api.js";
import { fill, h } from "./dom.js";
import { counted, num, shapeWords, whole } from "./format.js";
import { button, choice, facts, field, offer, words } from "./controls.js";
import { progressOf } from "./queue.js";
import { hrefOf, note } from "./router.js";
import { added, ended, jobs, listen, newestJob } from "./store.js";

const KINDS = { known: "known by name", given: "named at the start", run: "used by a run" };
const SEVERITIES = { error: "Error", warning: "Warning", note: "Note" };

export function showData({ root, query, signal, title }) {
  title("Data");
  const said = words();
  const source = choice([], "");
  const detail = h("p", { class: "hint" });
  const size = h("input", { type: "text", value: query.get("size") ?? "", placeholder: "their own", spellcheck: "false", autocomplete: "off" });
  const channels = choice([["", "their own"], ["1", "grey"], ["3", "colour"]], query.get("channels") ?? "");
  const bar = progressOf();
  const stop = button("Cancel", () => remove(`/jobs/${job}`), { said, small: true, hidden: true });
  const look = button("Look at these images", ask, { main: true, said });
  const shown = h("div", { class: "part" });
  let sources = [];
  let job = null;

  root.append(
    h("h1", null, "Data"),
    h("form", { class: "panel stack", onsubmit: (event) => { event.preventDefault(); look.click(); } },
      h("div", { class: "row wide-row" }, field("Images", source), field("Size", size), field("Colours", channels), look),
      detail,
      h("p", { class: "hint" }, "Folders of your own are named where the studio is started: ", h("code", null, "unraze studio --data FOLDER"))),
    said.element,
    h("div", { class: "row" }, bar.element, stop),
    shown,
  );

  const wanted = () => ({ source: source.value, size: size.value.trim() || null, channels: channels.value ? Number(channels.value) : null });
  const same = (one) => one.kind === "data" && JSON.stringify(["source", "size", "channels"].map((key) => one.asked[key] ?? null)) === JSON.stringify(["source", "size", "channels"].map((key) => wanted()[key]));

  function changed() {
    const { source: id, size: at, channels: colours } = wanted();
    note(new URLSearchParams(Object.entries({ source: id, size: at, channels: colours }).filter(([, value]) => value)));
    const found = sources.find((one) => one.id === id);
    fill(detail, found && [found.detail === found.title ? "" : `${found.detail} `, h("span", { class: "quiet" }, `(${KINDS[found.kind] ?? found.kind})`)]);
    const before = newestJob((one) => same(one) && (one.state === "done" || !ended(one)));
    job = null;
    fill(shown, before ? null : h("p", { class: "quiet" }, "Not looked at yet: this reads all of them, and looks for damaged, doubled and odd ones."));
    bar.update(null);
    stop.hidden = true;
    said.say("");
    if (before) follow(before);
  }

  async function ask() {
    follow(added(await postJob("data", wanted())));
  }

  function follow(now) {
    job = now.id;
    bar.update(now);
    stop.hidden = ended(now);
    if (now.state === "failed") said.fail(now.error);
    if (now.state === "cancelled") said.say("Cancelled.");
    if (now.state !== "done") fill(shown);
    else if (now.result) fill(shown, presented(now, signal));
  }

  async function load() {
    sources = (await get("/sources", signal)).sources;
    const asked = query.has("job") ? (jobs.get(query.get("job")) ?? null) : null;
    if (asked) {
      size.value = asked.asked.size ?? "";
      channels.value = asked.asked.channels ?? "";
    }
    offer(source, sources.map((one) => [one.id, one.title]), query.get("source") ?? sources.find((one) => one.title === "fashion-mnist")?.id);
    changed();
  }

  for (const one of [source, size, channels]) one.addEventListener("change", changed);
  listen("job", (now) => now.id === job && follow(now), signal);
  listen("lists", () => job === null && sources.length && changed(), signal);
  load().catch((error) => !isLeft(error) && said.fail(error));
}

function presented(job) {
  const { stats, findings, sheet, held_sheet: held, words: said } = job.result;
  const pictureOf = (name, alt, caption) => h("figure", { class: "sheet" }, h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": alt }, h("img", { class: "pixels", src: `/api/jobs/${job.id}/${name}.png`, alt, onload: enlarge })), h("figcaption", null, caption));
  return [
    h("section", null, h("h2", null, "What data check found"), said && h("p", null, said.charAt(0).toUpperCase() + said.slice(1), "."), findings.length > 0 && h("ul", { class: "findings" }, findings.map(findingOf))),
    h("section", null, h("h2", null, "Statistics"), statsOf(stats)),
    h("section", null, h("h2", null, "Contact sheets"),
      h("div", { class: "sheets" },
        sheet && pictureOf("sheet", "Some of the images that are trained on", `Trained on: ${counted(stats.count, "image")}`),
        held && pictureOf("held-out", "Some of the images that are held out", `Held out: ${counted(stats.held_out, "image")}, never trained on; quality is measured against them`)),
      !held && h("p", { class: "quiet" }, "Nothing can be held out of these images: quality cannot be measured.")),
    h("p", null, h("a", { class: "button", href: hrefOf("train", "", { source: job.asked.source, size: job.asked.size, channels: job.asked.channels }) }, "Train on these")),
  ];
}

/** Small sheets are shown larger, at a whole multiple of their size. */
function enlarge({ target }) {
  const room = Math.min(560, target.parentElement.clientWidth || 300);
  target.style.width = `${target.naturalWidth * Math.max(1, Math.floor(room / target.naturalWidth))}px`;
}

function findingOf({ severity, what, remedy, names, count }) {
  return h(
    "li",
    { class: `finding finding-${severity}` },
    h("strong", null, `${SEVERITIES[severity] ?? severity}: `),
    what,
    remedy && remedy !== "none needed" && h("p", { class: "quiet" }, remedy.charAt(0).toUpperCase() + remedy.slice(1)),
    names.length > 0 && h("details", { class: "fold" }, h("summary", null, count > names.length ? `${whole(names.length)} of ${whole(count)}` : counted(names.length, "name")), h("ul", { class: "fold-body names" }, names.map((name) => h("li", null, h("code", null, name))))),
  );
}

function statsOf(stats) {
  const each = (values) => values.map((value) => num(value)).join(", ");
  const classes = Object.entries(stats.classes ?? {});
  const most = Math.max(...classes.map(([, count]) => count), 1);
  return h(
    "div",
    { class: "stats" },
    facts([
      ["Trained on", counted(stats.count, "image")],
      ["Held out", counted(stats.held_out, "image")],
      ["Size", shapeWords([stats.channels, stats.height, stats.width])],
      ["Mean, from \u22121 to 1", each(stats.mean)],
      ["Spread", each(stats.spread)],
      ["Spread of all values", num(stats.sigma_data)],
    ]),
    classes.length > 0 && h(
      "table",
      { class: "plain classes" },
      h("caption", null, "Classes"),
      h("thead", { class: "unseen" }, h("tr", null, h("th", { scope: "col" }, "Class"), h("th", { scope: "col" }, "Images"), h("th", { scope: "col" }, "Share"))),
      h("tbody", null, classes.map(([name, count]) => h("tr", null, h("th", { scope: "row" }, name), h("td", { class: "number" }, whole(count)), h("td", null, h("meter", { min: 0, max: most, value: count, "aria-label": `${name}, beside the largest class` }))))),
    ),
  );
}
