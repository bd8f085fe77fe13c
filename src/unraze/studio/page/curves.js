// The curves of a run, held within bounds however long it trains.

import { get } from "./api.js";
import { chart } from "./charts.js";
import { h } from "./dom.js";

const MOST = 2000;
const COLUMNS = ["step", "loss", "lr", "images_per_second"];

/** Joins neighbours, two by two, until there are few enough. */
function thinned(columns) {
  const joined = Object.fromEntries(COLUMNS.map((name) => [name, []]));
  for (let k = 0; k < columns.step.length; k += 2) {
    const last = Math.min(k + 1, columns.step.length - 1);
    for (const name of COLUMNS) {
      const [a, b] = [columns[name][k], columns[name][last]];
      joined[name].push(name === "step" ? b : a === null || b === null ? (b ?? a) : (a + b) / 2);
    }
  }
  return joined;
}

/** The four charts of a run; look() asks for what is new and draws it. */
export function curvesOf(id, signal) {
  const nothing = () => Object.fromEntries(COLUMNS.map((name) => [name, []]));
  let columns = nothing();
  let quality = [];
  let last = 0;
  let asking = null;
  let again = false;
  const charts = {
    loss: chart({ title: "Loss", x: "step", yKind: "log10" }),
    quality: chart({ title: "Quality: KID with its 95 % interval, lower is better", x: "step", yFrom0: true, none: "Not measured so far: give \u201cSteps between measures\u201d when you start a training, or evaluate it below." }),
    lr: chart({ title: "Learning rate", x: "step", yFrom0: true, height: 152 }),
    images_per_second: chart({ title: "Images a second", x: "step", yFrom0: true, height: 152 }),
  };
  const element = h("div", { class: "charts" }, Object.values(charts).map((one) => one.element));

  function take(said) {
    if (said.began_anew || said.step < last) {
      columns = nothing();
      quality = [];
    }
    for (const name of COLUMNS) columns[name].push(...said.columns[name]);
    const later = new Map([...quality, ...said.quality].map((row) => [row.step, row]));
    quality = [...later.values()].sort((a, b) => a.step - b.step);
    while (columns.step.length > MOST) columns = thinned(columns);
    last = said.step;
  }

  function draw() {
    const xReach = columns.step.length ? [0, columns.step[columns.step.length - 1]] : undefined;
    for (const name of COLUMNS.slice(1)) {
      const points = columns.step.map((x, k) => ({ x, y: columns[name][k] }));
      charts[name].draw({ xReach, series: [{ name: "value", shade: 0, points, kind: "line" }] });
    }
    charts.quality.draw({ xReach, series: [{ name: "KID", shade: 0, kind: quality.length < 30 ? "marks" : "line", points: quality.map((row) => ({ x: row.step, y: row.kid, low: row.low, high: row.high })) }] });
  }

  /** One request at a time; what is told meanwhile is asked for right after it. */
  async function look() {
    if (asking) {
      again = true;
      return asking;
    }
    asking = get(`/runs/${id}/curves?after=${last}`, signal);
    try {
      const said = await asking;
      const behind = !said.began_anew && said.step < last;
      take(behind ? { ...(await get(`/runs/${id}/curves?after=0`, signal)), began_anew: true } : said);
      draw();
    } finally {
      asking = null;
    }
    if (again) {
      again = false;
      await look();
    }
  }

  return { element, look };
}
