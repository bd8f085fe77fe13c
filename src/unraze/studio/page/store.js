// Runs and jobs as the server last told them, and the one stream of events that tells them.

import { ApiError, GONE, client, get } from "./api.js";
import { on } from "./dom.js";

const AGAIN = 3000;
/** How long a tab that nobody looks at goes on listening. */
const REST = 5000;
const MOST_JOBS = 200;

const told = new EventTarget();
export const runs = new Map();
export const jobs = new Map();
export const state = { folder: "", loaded: false, broken: "", about: null };

let source = null;
let timer = 0;
let resting = false;
/** What events told since a list was asked for: it is newer than the list. */
let newer = new Set();

/** Calls on "run", "run-gone", "job", "job-gone", "lists" (all anew) and "connection" (with what is broken). */
export function listen(name, call, signal) {
  on(told, name, (event) => call(event.detail), signal);
}

function tell(name, detail) {
  told.dispatchEvent(new CustomEvent(name, { detail }));
}

/** Opens the stream; it is opened again by itself whenever it breaks. */
export function connect() {
  clearTimeout(timer);
  source?.close();
  source = new EventSource(`/api/events?client=${encodeURIComponent(client)}`);
  source.addEventListener("open", refresh);
  source.addEventListener("error", broken);
  heed("run", (run) => runs.set(run.id, run));
  heed("run-gone", ({ id }) => runs.delete(id));
  heed("job", keepJob);
  heed("job-gone", ({ id }) => jobs.delete(id));
}

/** Ends the stream: without a session there is nothing to hear. */
export function disconnect() {
  clearTimeout(timer);
  source?.close();
  source = null;
  resting = false;
}

/** A browser has six lines to one address, and each stream holds one: a tab that nobody sees gives its
 * own back, unless what it asked for would end with it, and listens again once it is seen. */
document.addEventListener("visibilitychange", () => (document.hidden ? setTimeout(rest, REST) : wake()));
told.addEventListener("job", () => document.hidden && setTimeout(rest, REST));

function rest() {
  const waits = [...jobs.values()].some((job) => job.client === client && !job.keep && !ended(job));
  if (!document.hidden || source === null || waits) return;
  disconnect();
  resting = true;
}

function wake() {
  if (!resting) return;
  resting = false;
  connect();
}

function heed(name, keep) {
  source.addEventListener(name, (event) => {
    const said = JSON.parse(event.data);
    newer.add(said.id);
    keep(said);
    tell(name, said);
  });
}

/** Notes a job, also one that was answered to a request before any event told it. */
function keepJob(job) {
  jobs.set(job.id, job);
  if (jobs.size > MOST_JOBS) jobs.delete(jobs.keys().next().value);
}

/** Notes a run that was answered to a request. */
export function keepRun(run) {
  const { id, name, state: at, step, steps, loss, preset, source: from, shape, quality, preview, changed, thumbnail, can_sample, error } = run;
  runs.set(id, { id, name, state: at, step, steps, loss, preset, source: from, shape, quality, preview, changed, thumbnail, can_sample, error });
}

/** Notes a job and tells of it. */
export function added(answered) {
  const job = answered.result ? answered : (jobs.get(answered.id) ?? answered); // an event may have told more already
  keepJob(job);
  tell("job", job);
  return job;
}

async function refresh() {
  newer = new Set();
  try {
    const [listed, queued] = await Promise.all([get("/runs"), get("/jobs")]);
    state.folder = listed.folder;
    renew(runs, listed.runs);
    renew(jobs, queued.jobs);
    state.loaded = true;
    set(true);
    tell("lists");
  } catch (error) {
    if (!(error instanceof ApiError) || error.status === 401) return;
    if (error.status === 0) return broken();
    set(false, error.message); // it is there, and says why it cannot tell
    clearTimeout(timer);
    timer = setTimeout(refresh, AGAIN);
  }
}

function renew(kept, listed) {
  const before = new Map(kept);
  kept.clear();
  for (const one of listed) kept.set(one.id, newer.has(one.id) ? (before.get(one.id) ?? one) : one);
  for (const [id, one] of before) if (newer.has(id) && !kept.has(id)) kept.set(id, one);
}

/** The browser tries again by itself after some breaks, and gives up after others. */
async function broken() {
  set(false);
  if (source === null || source.readyState !== EventSource.CLOSED) return;
  clearTimeout(timer);
  timer = setTimeout(async () => {
    try {
      await get("/about"); // tells a lost session (401) from a server that is not there
    } catch (error) {
      if (error.status === 401) return;
    }
    if (source !== null) connect();
  }, AGAIN);
}

function set(connected, why = LOST) {
  const words = connected ? "" : why;
  if (state.broken === words) return;
  state.broken = words;
  tell("connection", words);
}

const LOST = `${GONE} Trying again \u2026`;

/** What can be chosen here; asked for once. */
export async function about() {
  state.about ??= await get("/about");
  return state.about;
}

/** Runs, those that changed last first. */
export function runsInOrder() {
  return [...runs.values()].sort((a, b) => b.changed - a.changed || a.name.localeCompare(b.name));
}

/** The newest job that fits, of those that are remembered. */
export function newestJob(fits) {
  return [...jobs.values()].reverse().find(fits) ?? null;
}

/** Whether a job has ended, well or not. */
export const ended = (job) => ["done", "failed", "cancelled"].includes(job.state);
