// Asking while a slider moves: one request at a time, and the newest value next.

import { isLeft } from "./api.js";

/** ask(value) → promise; got(answer, value), failed(error). Values that came too late are left out. */
export function latest(ask, got, failed) {
  let busy = false;
  let waiting = null;
  return async function want(value) {
    waiting = { value };
    if (busy) return;
    busy = true;
    while (waiting) {
      const { value: now } = waiting;
      waiting = null;
      try {
        got(await ask(now), now);
      } catch (error) {
        if (!isLeft(error)) failed(error);
      }
    }
    busy = false;
  };
}
