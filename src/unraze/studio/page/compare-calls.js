// Quality against the number of network calls: KID with its interval.

import { postJob, remove } from "./api.js";
import { chart } from "./charts.js";
import { fill, h } from "./dom.js";
import { num, whole } from "./format.js";
import { button, field, words } from "./controls.js";
import { progressOf } from "./queue.js";
import { added, ended, jobs, listen, newestJob } from "./store.js";

/** The part that measures. `shown()` are the runs [{letter, run, name}], each once. */
export function callsPart({ shown, signal }) {
  const said = words();
  const calls = h("input", { type: "text", value: "2, 4, 8, 16, 32", spellcheck: "false", autocomplete: "off" });
  const count = h("input", { type: "number", min: 100, max: 10000, step: 100, value: 500 });
  const asks = h("div", { class: "buttons" });
  const bars = h("div", { class: "stack bars" });
  const curve = chart({ title: "KID by network calls, 95 % interval, lower is better", x: "network calls", xKind: "log2", yFrom0: true, height: 300 });
  const table = h("div");
  const remarks = h("div");
  const element = h(
    "section",
    { class: "panel stack" },
    h("h2", null, "Quality against network calls"),
    h("p", { class: "quiet" }, "More calls cost more time; beyond some number they gain little. Each number of calls draws samples of its own."),
    h("div", { class: "row wide-row" }, field("Numbers of calls", calls), field("Samples each", count), asks),
    said.element,
    bars,
    curve.element,
    table,
    remarks,
  );
  let of = new Map();

  const same = (run) => (job) => job.kind === "calls" && job.run === run && job.state !== "cancelled" && job.state !== "failed";

  function numbers() {
    const found = calls.value.split(/[\s,;]+/).filter(Boolean).map(Number);
    if (!found.length || found.some((one) => !Number.isInteger(one) || one < 1)) throw new Error("Give numbers of calls, such as 2, 4, 8, 16.");
    return found;
  }

  function lay() {
    of = new Map(shown().map((one) => [one.run, { ...one, job: newestJob(same(one.run)), bar: progressOf(), stop: null }]));
    for (const one of of.values()) {
      one.stop = button(`Cancel ${one.letter}`, () => remove(`/jobs/${one.job.id}`), { small: true, said });
    }
    fill(asks, [...of.values()].map((one) => button(`Measure ${one.letter}`, async () => follow(added(await postJob("calls", { run: one.run, calls: numbers(), count: Number(count.value) }))), { said })));
    fill(bars, [...of.values()].map((one) => h("div", { class: "row" }, one.bar.element, one.stop)));
    for (const one of of.values()) move(one);
    draw();
  }

  function follow(job) {
    const one = of.get(job.run);
    if (!one || job.kind !== "calls") return;
    if (one.job && one.job.id !== job.id && (jobs.get(one.job.id)?.made ?? 0) > job.made) return;
    one.job = job;
    if (job.state === "failed") said.fail(job.error);
    move(one);
    draw();
  }

  function move({ bar, job, stop }) {
    bar.update(job);
    stop.hidden = !job || ended(job);
  }

  function draw() {
    const known = [...of.values()].filter((one) => one.job?.result?.points?.length);
    curve.element.hidden = known.length === 0;
    if (!known.length) {
      fill(table);
      fill(remarks);
      return;
    }
    const floors = known.filter(({ job }) => Number.isFinite(job.result.floor?.value) && job.result.floor.value !== null);
    curve.draw({
      series: known.map(({ letter, name, job }) => ({ name: `${letter}, ${name}`, shade: "ABCD".indexOf(letter), kind: "marks", points: job.result.points.map((p) => ({ x: p.calls, y: p.value, low: p.low, high: p.high })) })),
      rules: floors.slice(0, 1).map(({ job }) => ({ y: job.result.floor.value, name: "floor: real images among themselves" })),
    });
    fill(table, callsTable(known));
    fill(remarks, [...new Set(known.map(({ job }) => job.result.words))].map((text) => h("p", { class: "quiet" }, text)));
  }

  listen("job", follow, signal);
  return { element, lay };
}

function callsTable(known) {
  const rows = known.flatMap(({ letter, job }) => job.result.points.map((point) => ({ letter, ...point })));
  return h(
    "details",
    { class: "fold" },
    h("summary", null, "The same as a table"),
    h("div", { class: "fold-body scroll", tabindex: 0, role: "region", "aria-label": "Quality by network calls" },
      h("table", { class: "plain" },
        h("thead", null, h("tr", null, ["Of", "Sampler"].map((name) => h("th", { scope: "col" }, name)), ["Calls", "KID", "from", "to"].map((name) => h("th", { scope: "col", class: "number" }, name)))),
        h("tbody", null, rows.map((p) => h("tr", null, h("th", { scope: "row" }, p.letter), h("td", null, p.sampler), h("td", { class: "number" }, whole(p.calls)), [p.value, p.low, p.high].map((value) => h("td", { class: "number" }, num(value)))))))),
  );
}
