// Controls that several views share: fields, sliders, films, words of errors, places to drop files.

import { announce, fill, freshId, h, on, say, set } from "./dom.js";
import { isLeft, sentence } from "./api.js";

/** A control with its name above it and, where there is one, a hint beneath. */
export function field(name, control, { hint, value, wide } = {}) {
  control.id ||= freshId("field");
  const hintId = hint ? freshId("hint") : null;
  if (hintId) control.setAttribute("aria-describedby", hintId);
  return h(
    "div",
    { class: wide ? "field wide" : "field" },
    h("div", { class: "field-name" }, h("label", { for: control.id }, name), value ?? null),
    control,
    hint && h("p", { class: "hint", id: hintId }, hint),
  );
}

/** A checkbox with its name beside it. */
export function check(name, props) {
  const box = h("input", { type: "checkbox", ...props });
  return { box, element: h("label", { class: "check" }, box, name) };
}

/** A choice of [value, name] pairs. */
export function choice(options, value, props) {
  const element = h("select", props);
  offer(element, options, value);
  return element;
}

/** Sets the options of a choice, and which one is chosen. */
export function offer(element, options, value) {
  fill(element, options.map(([key, name]) => h("option", { value: key }, name)));
  element.value = value ?? "";
  if (element.selectedIndex < 0) element.selectedIndex = 0;
}

/** A slider with its value beside its name; `shown` says the value in words. */
export function slider(name, { min, max, step = 1, value, shown = String, hint, oninput, label }) {
  const out = h("span", { class: "value" });
  const input = h("input", { type: "range", min, max, step, value });
  const tell = () => {
    say(out, shown(Number(input.value)));
    input.setAttribute("aria-valuetext", shown(Number(input.value)));
  };
  input.addEventListener("input", () => {
    tell();
    oninput?.(Number(input.value));
  });
  const element = field(name, input, { hint, value: out });
  if (label) input.setAttribute("aria-label", label);
  tell();
  return {
    element,
    input,
    get value() {
      return Number(input.value);
    },
    set value(to) {
      input.value = to;
      tell();
    },
    bounds(low, high) {
      input.min = low;
      input.max = high;
      tell();
    },
  };
}

/** A few choices of which one holds, side by side. */
export function segments(name, options, value, onchange) {
  const group = freshId("choice");
  const element = h("fieldset", { class: "segments" }, h("legend", { class: "unseen" }, name));
  for (const [key, title] of options) {
    const radio = h("input", { type: "radio", name: group, value: key, checked: key === value, onchange: () => onchange(key) });
    element.append(h("label", null, radio, h("span", null, title)));
  }
  return element;
}

/** What of a frame can be shown: x_t, or the network's estimate of the picture in it. */
export const SIDES = () => [
  ["state", h("span", null, "State x", h("sub", null, "t"))],
  ["estimate", h("span", null, "Estimate x\u0302", h("sub", null, "0"))],
];

/** A place for what went wrong, or how it is going; screen readers hear it. */
export function words() {
  const element = h("p", { class: "words", role: "status" });
  return {
    element,
    say(text) {
      element.className = "words";
      say(element, text ?? "");
    },
    fail(error) {
      if (isLeft(error)) return;
      element.className = "words bad";
      say(element, error instanceof Error ? error.message : sentence(String(error)));
    },
  };
}

/** A button that says what goes wrong, and cannot be pressed twice at once. */
export function button(title, act, { main, said, small, ...props } = {}) {
  const element = h("button", { type: "button", class: main ? "main" : small ? "small" : null, ...props }, title);
  element.addEventListener("click", async () => {
    if (element.getAttribute("aria-disabled") === "true") return;
    element.setAttribute("aria-disabled", "true");
    said?.say("");
    try {
      await act(element);
    } catch (error) {
      if (said) said.fail(error);
      else announce(error.message);
    } finally {
      element.removeAttribute("aria-disabled");
    }
  });
  return element;
}

/** A film: a slider over frames, back, play and next. show(k) is called for each frame. */
export function player(name, { signal, shown = (k) => String(k), show, each = 90 }) {
  let timer = 0;
  let count = 0;
  const line = slider(name, { min: 0, max: 0, value: 0, shown: (k) => (count ? shown(k) : ""), oninput: (k) => { halt(); show(k); } });
  const play = h("button", { type: "button", class: "small play" }, "Play");
  const back = h("button", { type: "button", class: "small" }, "Back");
  const next = h("button", { type: "button", class: "small" }, "Next");
  const element = h("div", { class: "player" }, h("div", { class: "buttons" }, back, play, next), line.element);
  const to = (k) => {
    if (!count) return;
    line.value = Math.max(0, Math.min(count - 1, k));
    show(line.value);
  };
  const halt = () => {
    clearInterval(timer);
    timer = 0;
    say(play, "Play");
  };
  const tick = () => (line.value >= count - 1 ? halt() : to(line.value + 1));
  back.addEventListener("click", () => { halt(); to(line.value - 1); });
  next.addEventListener("click", () => { halt(); to(line.value + 1); });
  play.addEventListener("click", () => {
    if (timer) return halt();
    if (line.value >= count - 1) to(0);
    say(play, "Pause");
    timer = setInterval(tick, Math.max(each, Math.min(500, 3000 / Math.max(1, count))));
  });
  if (signal) on(signal, "abort", halt);
  return {
    element,
    get value() {
      return line.value;
    },
    to,
    halt,
    /** How many frames there are by now; whoever looked at the newest sees the one that is it now. */
    follow(to_) {
      const before = count;
      if (this.grow(to_) && !timer && before !== to_) to(to_ - 1);
    },
    /** How many frames there are by now; says whether the slider was at the newest. */
    grow(to_) {
      const atEnd = count === 0 || line.value >= count - 1;
      count = to_;
      line.bounds(0, Math.max(0, count - 1));
      for (const one of [back, play, next, line.input]) set(one, "disabled", count < 2);
      return atEnd;
    },
  };
}

/** A place to drop a file, or to choose one. take(file) is called with it. */
export function dropPlace(text, take, { accept = "image/*", signal, zone } = {}) {
  const said = words();
  const input = h("input", { type: "file", accept, class: "unseen" });
  const element = h("div", { class: "drop" }, h("label", { class: "drop-label" }, input, h("span", { class: "drop-button" }, "Choose a file"), h("span", null, text)), said.element);
  const over = zone ?? element;
  const taken = async (file) => {
    said.say("Reading \u2026");
    try {
      said.say((await take(file)) ?? "");
    } catch (error) {
      said.fail(error);
    }
    input.value = "";
  };
  input.addEventListener("change", () => input.files[0] && taken(input.files[0]));
  let depth = 0;
  const lit = (by) => {
    depth = Math.max(0, depth + by);
    element.classList.toggle("over", depth > 0);
  };
  on(over, "dragenter", (event) => { event.preventDefault(); lit(1); }, signal);
  on(over, "dragleave", () => lit(-1), signal);
  on(over, "dragover", (event) => event.preventDefault(), signal);
  on(over, "drop", (event) => {
    const isTaken = event.defaultPrevented; // by a place within this one
    event.preventDefault();
    lit(-99);
    if (isTaken) return;
    const file = event.dataTransfer?.files[0];
    if (file) taken(file);
    else said.fail("that is no file; drop a picture from a folder");
  }, signal);
  return { element, said };
}

/** What stands where there is nothing yet, and what to do about it. */
export function empty(title, ...parts) {
  return h("div", { class: "empty" }, h("h2", null, title), parts);
}

/** Names and values. */
export function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.filter(Boolean).map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value))));
}

/** A part of the page that can be folded away; what is in it is made when it is first opened. */
export function folded(title, make, { open = false } = {}) {
  const body = h("div", { class: "fold-body" });
  const element = h("details", { class: "fold", open }, h("summary", null, title), body);
  let made = false;
  const fillIt = () => {
    if (made || !element.open) return;
    made = true;
    fill(body, make());
  };
  element.addEventListener("toggle", fillIt);
  fillIt();
  return element;
}

/** Lines of text that can be scrolled, by keyboard too. */
export function text(content, name) {
  return h("pre", { tabindex: 0, role: "region", "aria-label": name }, content);
}
