// What is to be drawn anew, painted on an image: by mouse, pen, touch and keyboard.

import { announce, h, on, say } from "./dom.js";
import { button, segments, slider } from "./controls.js";
import { packed, unpacked } from "./edit-bits.js";

const MOST_UNDONE = 50;

/** The image with its mask, and what stands beneath its tools. value is the mask as POST /api/jobs/edit takes it; changed() is called for each stroke. */
export function maskPart([, height, width], given, { wanted, beneath, changed, signal }) {
  let bits = unpacked(given, width * height);
  let cursor = { x: Math.floor(width / 2), y: Math.floor(height / 2) };
  let mode = "paint";
  let times = 1;
  let stroke = null;
  const past = [];
  const image = h("canvas", { width, height, class: "pixels", "aria-hidden": "true" });
  const over = h("canvas", { class: "mask-over", "aria-hidden": "true" });
  const small = h("canvas", { width, height });
  const easel = h("div", { class: "easel", tabindex: 0, role: "application", "aria-label": "What is drawn anew. Arrow keys move a cursor over the pixels, with Shift by the brush's size; Space paints or erases; Control and Z undoes." }, image, over);
  const size = slider("Brush", { min: 1, max: Math.max(2, Math.ceil(Math.min(width, height) / 2)), value: Math.max(1, Math.round(Math.min(width, height) / 7)), shown: (d) => (d === 1 ? "1 pixel" : `${d} pixels`), oninput: draw });
  const tools = segments("What the brush does", [["paint", "Paint"], ["erase", "Erase"]], mode, (to) => { mode = to; });
  const undo = button("Undo", () => restore(past.pop()), { small: true, disabled: true });
  const invert = button("Invert", () => whole((bit) => 1 - bit), { small: true });
  const clear = button("Clear", () => whole(() => 0), { small: true });
  const share = h("p", { class: "quiet" });

  /** Marks all pixels within the brush around a place. */
  function dab(x, y) {
    const radius = size.value / 2;
    const centre = size.value % 2 ? 0.5 : 0;
    for (let row = Math.max(0, Math.floor(y - radius)); row < Math.min(height, y + radius + 1); row += 1) {
      for (let column = Math.max(0, Math.floor(x - radius)); column < Math.min(width, x + radius + 1); column += 1) {
        if ((column + 0.5 - x - centre) ** 2 + (row + 0.5 - y - centre) ** 2 <= Math.max(0.3, radius ** 2)) bits[row * width + column] = mode === "paint" ? 1 : 0;
      }
    }
  }

  function before() {
    past.push(bits.slice());
    if (past.length > MOST_UNDONE) past.shift();
  }

  function whole(to) {
    before();
    bits = bits.map(to);
    tell();
  }

  function restore(to) {
    if (!to) return;
    bits = to;
    tell();
  }

  function tell() {
    draw();
    changed();
  }

  const marked = () => bits.reduce((sum, bit) => sum + bit, 0);

  /** Why it cannot be filled in; empty where it can. */
  function problem() {
    if (!marked()) return "Nothing is marked yet: paint over what is to be drawn anew.";
    return marked() === bits.length ? "All of it is marked: leave something that is known." : "";
  }

  function draw() {
    say(share, problem() || `${Math.round((100 * marked()) / bits.length) || "Under 1"}% is drawn anew, the rest stays as it is.`);
    undo.disabled = !past.length;
    const context = over.getContext("2d");
    const shade = small.getContext("2d");
    shade.clearRect(0, 0, width, height);
    shade.fillStyle = getComputedStyle(easel).color;
    bits.forEach((bit, k) => {
      if (!bit) return;
      shade.globalAlpha = (k + Math.floor(k / width)) % 2 ? 0.62 : 0.82;
      shade.fillRect(k % width, Math.floor(k / width), 1, 1);
    });
    context.clearRect(0, 0, over.width, over.height);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, over.width, over.height);
    if (document.activeElement !== easel) return;
    const reach = size.value;
    const from = (at) => (at - Math.floor(reach / 2)) * times;
    for (const [colour, dash] of [["#000", []], ["#fff", [4, 4]]]) {
      context.strokeStyle = colour;
      context.lineWidth = 2;
      context.setLineDash(dash);
      context.strokeRect(from(cursor.x) + 1, from(cursor.y) + 1, reach * times - 2, reach * times - 2);
    }
  }

  /** The pixel beneath a pointer. */
  function place(event) {
    const box = over.getBoundingClientRect();
    const at = (where, from, length, count) => Math.max(0, Math.min(count - 1, Math.floor(((where - from) / length) * count)));
    return { x: at(event.clientX, box.left, box.width, width), y: at(event.clientY, box.top, box.height, height) };
  }

  function go(to) {
    const from = stroke ?? to;
    const steps = Math.max(1, Math.abs(to.x - from.x), Math.abs(to.y - from.y));
    for (let k = 0; k <= steps; k += 1) dab(Math.round(from.x + ((to.x - from.x) * k) / steps), Math.round(from.y + ((to.y - from.y) * k) / steps));
    stroke = cursor = to;
    draw();
  }

  easel.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    easel.focus({ preventScroll: true });
    easel.setPointerCapture(event.pointerId);
    before();
    stroke = null;
    go(place(event));
  });
  easel.addEventListener("pointermove", (event) => {
    if (stroke) for (const one of event.getCoalescedEvents?.() ?? [event]) go(place(one));
  });
  for (const name of ["pointerup", "pointercancel"]) {
    easel.addEventListener(name, () => {
      if (!stroke) return;
      stroke = null;
      tell();
    });
  }
  easel.addEventListener("focus", draw);
  easel.addEventListener("blur", draw);

  easel.addEventListener("keydown", (event) => {
    const by = event.shiftKey ? size.value : 1;
    const moves = { ArrowLeft: [-by, 0], ArrowRight: [by, 0], ArrowUp: [0, -by], ArrowDown: [0, by] };
    const [dx, dy] = moves[event.key] ?? [0, 0];
    if (event.key === "z" && (event.ctrlKey || event.metaKey)) {
      restore(past.pop());
    } else if (event.key === " ") {
      before();
      dab(cursor.x, cursor.y);
      tell();
    } else if (dx || dy) {
      cursor = { x: Math.max(0, Math.min(width - 1, cursor.x + dx)), y: Math.max(0, Math.min(height - 1, cursor.y + dy)) };
      draw();
    } else return;
    event.preventDefault();
    const is = bits[cursor.y * width + cursor.x] ? "drawn anew" : "known";
    announce(`Column ${cursor.x + 1}, row ${cursor.y + 1}: ${is}`);
  });

  function resize(to) {
    times = Math.max(1, Math.floor(to / Math.max(width, height)));
    over.width = width * times;
    over.height = height * times;
    easel.style.width = `${Math.min(to, width * times)}px`;
    draw();
  }

  on(matchMedia("(prefers-color-scheme: dark)"), "change", draw, signal);
  const element = h("div", { class: "paint" }, easel, h("div", { class: "stack paint-tools" }, tools, size.element, h("div", { class: "buttons" }, undo, invert, clear), share, h("p", { class: "hint" }, "By keyboard: arrow keys move the cursor, Space paints, Control and Z undoes."), beneath));
  resize(wanted);
  return { element, image, resize, problem, get value() { return packed(bits); } };
}
