// Pictures of few pixels, many in one PNG: cut out and shown at whole multiples of their size.

import { h } from "./dom.js";
import { ApiError, GONE } from "./api.js";

/** Loads a picture; raises where it is not there. */
export async function picture(url, signal) {
  const image = new Image();
  image.decoding = "async";
  image.src = url;
  try {
    await image.decode();
  } catch {
    throw new ApiError(0, "A picture could not be loaded; it may not be remembered any more.");
  }
  if (signal?.aborted) throw new DOMException(GONE, "AbortError");
  return image;
}

/** A canvas for one picture of a shape (C, H, W), about `wanted` pixels wide. */
export function canvasOf([, height, width], wanted, label) {
  const canvas = h("canvas", { width, height, class: "pixels", ...(label ? { role: "img", "aria-label": label } : { "aria-hidden": "true" }) });
  resize(canvas, wanted);
  return canvas;
}

/** Shows a canvas at the whole multiple of its size that is nearest to what is wanted. */
export function resize(canvas, wanted) {
  const longest = Math.max(canvas.width, canvas.height);
  const times = wanted >= longest ? Math.max(1, Math.floor(wanted / longest)) : wanted / longest;
  canvas.style.width = `${canvas.width * times}px`;
}

/** Draws picture `number` of a sprite. */
export function cut(canvas, sprite, columns, number) {
  const { width, height } = canvas;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  const left = (number % columns) * width;
  const top = Math.floor(number / columns) * height;
  context.clearRect(0, 0, width, height);
  context.drawImage(sprite, left, top, width, height, 0, 0, width, height);
}

/** The frames of one job: asked for once each, forgotten all at once. */
export class Frames {
  constructor(urlOf) {
    this.urlOf = urlOf;
    this.kept = new Map();
  }

  /** A frame; what failed can be asked for again. */
  get(number, of = "state") {
    const key = `${of}/${number}`;
    if (!this.kept.has(key)) {
      const asked = picture(this.urlOf(number, of));
      asked.catch(() => this.kept.delete(key));
      this.kept.set(key, asked);
    }
    return this.kept.get(key);
  }

  clear() {
    this.kept.clear();
  }
}
