// Elements without markup: the content security policy forbids strings that become HTML.

const SVG = "http://www.w3.org/2000/svg";
const MATHML = "http://www.w3.org/1998/Math/MathML";
const PROPERTIES = new Set(["value", "checked", "disabled", "selected", "hidden", "open", "indeterminate"]);

/** An HTML element; props that begin with "on" are listeners, null and false are left out. */
export function h(tag, props, ...children) {
  return made(document.createElement(tag), props, children);
}

/** An SVG element. */
export function s(tag, props, ...children) {
  return made(document.createElementNS(SVG, tag), props, children);
}

/** A MathML element. */
export function m(tag, props, ...children) {
  return made(document.createElementNS(MATHML, tag), props, children);
}

function made(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) set(element, name, value);
  element.append(...nodes(children));
  return element;
}

/** Sets an attribute, a property or a listener. */
export function set(element, name, value) {
  if (name.startsWith("on") && typeof value === "function") {
    element.addEventListener(name.slice(2), value);
  } else if (PROPERTIES.has(name) && name in element) {
    element[name] = value;
  } else if (value === null || value === undefined || value === false) {
    element.removeAttribute(name);
  } else {
    element.setAttribute(name, value === true ? "" : String(value));
  }
}

function nodes(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false && child !== "");
}

/** Replaces what is in an element. */
export function fill(element, ...children) {
  element.replaceChildren(...nodes(children));
  return element;
}

/** Sets a text only where it changes, so that screen readers hear no echo. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
  return element;
}

let ids = 0;

/** An id that no other element has. */
export function freshId(word = "e") {
  ids += 1;
  return `${word}-${ids}`;
}

/** Tells a screen reader something that happened; once, and politely. */
export function announce(text) {
  say(document.getElementById("announcer"), text);
}

/** A listener that ends with a signal. */
export function on(target, name, listener, signal) {
  target.addEventListener(name, listener, { signal });
}

/** Calls after a quiet moment. */
export function settled(call, wait = 250) {
  let timer = 0;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...args), wait);
  };
}
