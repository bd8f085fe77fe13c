// All that is asked of the server: requests, their errors in words, the session.

export const GONE = "The studio does not answer; it may have been stopped.";

/** What went wrong, in the server's words; status 0: it did not answer. */
export class ApiError extends Error {
  constructor(status, words) {
    super(words);
    this.status = status;
  }
}

let sessionLost = () => {};

/** Who is called when there is no session (any more). */
export function whenSessionIsLost(call) {
  sessionLost = call;
}

/** This tab, by a random name that outlives a reload and ends with the tab. */
export const client = (() => {
  try {
    const kept = sessionStorage.getItem("unraze-client");
    if (kept) return kept;
    const fresh = randomName();
    sessionStorage.setItem("unraze-client", fresh);
    return fresh;
  } catch {
    return randomName();
  }
})();

/** crypto.randomUUID is there only where the address is of this machine, or encrypted. */
function randomName() {
  if (crypto.randomUUID) return crypto.randomUUID();
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
}

async function ask(method, path, { body, type, signal } = {}) {
  let answer;
  try {
    const headers = type ? { "Content-Type": type } : {};
    answer = await fetch(`/api${path}`, { method, body, headers, signal, credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, GONE);
  }
  if (answer.status === 401 && path !== "/session") sessionLost();
  if (!answer.ok) throw new ApiError(answer.status, await wordsOf(answer));
  if (answer.status === 204) return null;
  const text = await answer.text();
  return text ? JSON.parse(text) : null;
}

async function wordsOf(answer) {
  try {
    const { error } = await answer.json();
    if (error) return sentence(error);
  } catch {
    // no JSON: say what is known
  }
  return `The studio answered with an error (${answer.status}).`;
}

/** Begins with a capital and ends with a full stop, as text on a page does; paths and keys stay as they are. */
export function sentence(words) {
  const text = words.trim();
  const first = /^[a-z]+[ ,;]/.test(text) ? text.charAt(0).toUpperCase() : text.charAt(0);
  return first + text.slice(1) + (/[.!?…]$/.test(text) ? "" : ".");
}

export const get = (path, signal) => ask("GET", path, { signal });
export const remove = (path) => ask("DELETE", path);
export const post = (path, said, signal) =>
  ask("POST", path, { signal, ...(said === undefined ? {} : { body: JSON.stringify(said), type: "application/json" }) });
export const postBytes = (path, blob) => ask("POST", path, { body: blob, type: "application/octet-stream" });

/** Puts work into the queue, in this tab's name. */
export const postJob = (kind, said) => post(`/jobs/${kind}`, { client, ...said });

/** Whether an error is only that a view was left. */
export const isLeft = (error) => error?.name === "AbortError";
