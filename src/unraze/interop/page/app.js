// The page: reads model.json, lets onnxruntime compute the network, and shows the way from noise to
// picture. What is drawn is a function of the controls alone.

import * as ort from "./ort/ort.wasm.min.mjs";
import {
  adams, between, classOf, clipped, consistency, ddim, evenAngles, evenTimes, guided, karras, keep, normals,
  predict, scheduleOf, thetaAt,
} from "./sampler.js";

const SPACINGS = { time: evenTimes, angle: evenAngles, karras };
const ASKED = ["seed", "count", "class", "steps", "guidance"];
const $ = (id) => document.getElementById(id);

let about, schedule, session;
let film = [];
let drawing = 0; // the number of the drawing that is wanted; an older one stops

async function start() {
  about = await (await fetch("model.json")).json();
  schedule = scheduleOf(about.alpha_bar);
  show();
  ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
  ort.env.wasm.numThreads = self.crossOriginIsolated ? navigator.hardwareConcurrency : 1;
  session = await ort.InferenceSession.create("network.onnx", { executionProviders: ["wasm"] });
  $("draw").disabled = false;
  await draw();
}

/** The controls as the model has them, and as the address asks (#seed=1&steps=4). */
function show() {
  const [channels, height, width] = about.shape;
  $("name").textContent = about.title;
  document.title = `${about.title} · Unraze`;
  $("about").textContent =
    `${channels === 1 ? "Grey" : "Colour"} images of ${width} × ${height}, step ` +
    `${about.step.toLocaleString("en")} of its training, weights ${about.checkpoint.slice(0, 12)}.`;
  if (about.num_classes) {
    const names = about.class_names ?? Array.from({ length: about.num_classes }, (_, k) => `cluster ${k}`);
    $("class-word").textContent = about.shares ? "Cluster" : "Class";
    const all = about.shares ? "as in training" : "all in turn";
    [all, ...names].forEach((name, k) => $("class").append(new Option(name, k - 1)));
    $("class-label").hidden = false;
  }
  if (about.can_be_guided) $("guidance-label").hidden = false;
  ask("guidance", about.guidance);
  $("steps").max = Math.max(about.steps, Math.min(50, schedule.times.length - 1));
  $("steps").value = about.steps;
  if (about.times) {
    $("steps").disabled = true; // a distilled network makes the jumps it was taught
    $("steps").title = "A distilled network makes the jumps that it was taught";
  }
  for (const [key, value] of new URLSearchParams(location.hash.slice(1))) {
    if (ASKED.includes(key)) ask(key, value);
  }
  said();
}

/** Sets a control, a guidance exactly; what it cannot be leaves it as it was. */
function ask(key, value) {
  const control = $(key);
  if (control.disabled || value === "") return;
  if (control.type === "range" && !(value >= 0 && value < Infinity)) return;
  if (key === "guidance") {
    control.max = Math.ceil(Math.max(5, about.guidance, value));
    control.step = stepOf(Number(value));
  }
  const before = control.value;
  control.value = value;
  if (control.value === "") control.value = before;
}

/** A step that a number is a multiple of: 0.1, 0.01 or 0.001, or any. */
function stepOf(value) {
  return ["0.1", "0.01", "0.001"].find((step, k) => Number(value.toFixed(k + 1)) === value) ?? "any";
}

function said() {
  $("steps-out").value = $("steps").value;
  const guidance = Number($("guidance").value);
  $("guidance-out").value = Number.isInteger(guidance) ? guidance.toFixed(1) : Number(guidance.toFixed(4));
}

async function draw() {
  const number = ++drawing;
  const seed = Math.floor(Number($("seed").value));
  if (!(seed >= 0 && seed < 2 ** 32)) return fail("Seed: give a whole number from 0 to 4294967295.");
  const count = Number($("count").value);
  const chosen = Number($("class").value || -1);
  const classes = Array.from({ length: count }, (_, k) => (chosen >= 0 ? chosen : about.num_classes ? classOf(about, k, seed) : 0));
  const chain = about.times
    ? keep(schedule, about.times)
    : SPACINGS[about.spacing](schedule, Number($("steps").value), about.whole);
  const size = about.shape.reduce((a, b) => a * b);
  const noise = (step) => {
    const z = new Float32Array(count * size);
    for (let k = 0; k < count; k++) z.set(normals(seed, k, size, step), k * size);
    return z;
  };
  const x = noise(0);
  const denoise = denoiser(classes, Number($("guidance").value));
  const walk = about.borders
    ? consistency(denoise, x, chain, noise, about.borders)
    : (about.sampler === "ddim" ? ddim : adams)(denoise, x, chain, about.order);
  const steps = chain.times.length - 1;
  const began = performance.now();
  const made = [{ t: chain.times.at(-1), x, x0: null }];
  look(made);
  for await (const step of walk) {
    if (number !== drawing) return;
    made.push(step);
    look(made);
    $("state").classList.remove("bad");
    $("state").textContent = `Step ${made.length - 1} of ${steps} …`;
    await new Promise((done) => setTimeout(done)); // let the page be painted
  }
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  $("state").textContent = `${count} picture${count > 1 ? "s" : ""} in ${steps} step${steps > 1 ? "s" : ""}: ${seconds} s.`;
  $("save").disabled = false;
  document.body.dataset.drawn = number; // for whoever waits for it
}

/** The network as a denoiser, with classes, guidance in its interval, and clipping. */
function denoiser(classes, scale) {
  const [channels, height, width] = about.shape;
  const dims = [classes.length, channels, height, width];
  const last = schedule.times.at(-1);

  async function said(x, t, labels, previous) {
    const [a, b] = [Math.cos(thetaAt(schedule, t)), Math.sin(thetaAt(schedule, t))];
    const norm = about.parametrisation === "edm" ? Math.hypot(b, a * about.sigma_data) : 1;
    const feeds = {
      x: new ort.Tensor("float32", norm === 1 ? x : x.map((value) => value / norm), dims),
      t: new ort.Tensor("float32", new Float32Array(classes.length).fill(t), [classes.length]),
    };
    if (about.num_classes) feeds.classes = new ort.Tensor("int64", BigInt64Array.from(labels.map(BigInt)), [labels.length]);
    if (about.self_conditioning) feeds.previous = new ort.Tensor("float32", previous ?? new Float32Array(x.length), dims);
    for (const name of Object.keys(feeds)) if (!session.inputNames.includes(name)) delete feeds[name];
    const raw = (await session.run(feeds)).raw.data;
    const stepRatio = about.step_ratio && between(about.step_ratio, t);
    return predict(about.parametrisation, firstHalf(raw, classes.length, x.length), x, a, b, { sigmaData: about.sigma_data, stepRatio });
  }

  return async (x, t, previous) => {
    let found = await said(x, t, classes, previous);
    const [low, high] = about.guidance_interval;
    if (about.can_be_guided && scale !== 1 && low * last <= t && t <= high * last) {
      const none = classes.map(() => about.num_classes);
      found = guided(found, await said(x, t, none, previous), scale);
    }
    if (!about.clip && !about.keeps_noise) return found;
    const within = clipped(found, x, Math.cos(thetaAt(schedule, t)), Math.sin(thetaAt(schedule, t)));
    return about.clip ? within : { x0: within.x0, eps: found.eps };
  };
}

/** Of an output with a learned variance, what is no variance. */
function firstHalf(raw, count, wanted) {
  if (raw.length === wanted) return raw;
  const [size, all] = [wanted / count, raw.length / count];
  const out = new Float32Array(wanted);
  for (let k = 0; k < count; k++) out.set(raw.subarray(k * all, k * all + size), k * size);
  return out;
}

/** Shows the newest moment of a film. */
function look(made) {
  film = made;
  $("moment").max = made.length - 1;
  $("moment").value = made.length - 1;
  $("moment").disabled = made.length < 2;
  paint();
}

/** The chosen moment: the state x_t, or the estimate that it came from. */
function paint() {
  const moment = film[Number($("moment").value)];
  if (!moment) return;
  const values = ($("estimate").checked && moment.x0) || moment.x;
  const [channels, height, width] = about.shape;
  const size = channels * height * width;
  const count = values.length / size;
  const columns = Math.ceil(Math.sqrt(count));
  const rows = Math.ceil(count / columns);
  const canvas = $("picture");
  [canvas.width, canvas.height] = [columns * (width + 1) - 1, rows * (height + 1) - 1];
  const context = canvas.getContext("2d");
  for (let k = 0; k < count; k++) {
    const image = context.createImageData(width, height);
    for (let i = 0; i < height * width; i++) {
      for (let c = 0; c < 3; c++) {
        const value = values[k * size + (channels === 1 ? 0 : c) * height * width + i];
        image.data[4 * i + c] = Math.round((value + 1) * 127.5); // the array clamps
      }
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, (k % columns) * (width + 1), Math.floor(k / columns) * (height + 1));
  }
  const theta = thetaAt(schedule, moment.t);
  $("where").textContent = `t = ${moment.t.toFixed(1)} of ${schedule.times.at(-1)}`;
  $("signal").textContent = Math.cos(theta).toFixed(3);
  $("noise").textContent = Math.sin(theta).toFixed(3);
}

function save() {
  const link = document.createElement("a");
  link.download = `${about.title}-seed${$("seed").value}.png`;
  link.href = $("picture").toDataURL("image/png");
  link.click();
}

function fail(message) {
  $("state").textContent = message;
  $("state").classList.add("bad");
}

function tried(what) {
  return (event) => {
    event?.preventDefault?.();
    Promise.resolve()
      .then(what)
      .catch((error) => fail(`That did not work: ${error.message}`));
  };
}

$("draw").disabled = true;
$("asked").addEventListener("submit", tried(draw));
$("dice").addEventListener("click", tried(() => {
  $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
  return session && draw();
}));
$("save").addEventListener("click", tried(save));
for (const id of ["steps", "guidance"]) $(id).addEventListener("input", said);
for (const id of ["moment", "estimate"]) $(id).addEventListener("input", paint);
tried(start)();
