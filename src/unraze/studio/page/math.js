// Formulas in MathML, and the values that stand in them.

import { fill, h, m } from "./dom.js";
import { fixed } from "./format.js";

export const id = (name) => m("mi", null, name);
export const n = (value) => m("mn", null, value);
const op = (sign) => m("mo", null, sign);
export const row = (...parts) => m("mrow", null, ...parts.map((part) => (typeof part === "string" ? op(part) : part)));
export const sub = (base, below) => m("msub", null, base, below);
export const squared = (base) => m("msup", null, base, n("2"));
const frac = (over, under) => m("mfrac", null, over, under);
/** No accent: without a font for mathematics that would lie on the letter, and ᾱ look like α. */
const bar = (base) => m("mover", null, base, op("\u00af"));
const hat = (base) => m("mover", { accent: "true" }, base, op("^"));
const tilde = (base) => m("mover", { accent: "true" }, base, op("~"));
const t = () => id("t");

/** The symbols of the text, each anew: a node has one place. */
export const sym = {
  t,
  x0: () => sub(id("x"), n("0")),
  xt: () => sub(id("x"), t()),
  xBefore: () => sub(id("x"), row(t(), "\u2212", n("1"))),
  x0Hat: () => sub(hat(id("x")), n("0")),
  eps: () => bar(id("\u03b5")),
  epsHat: () => hat(id("\u03b5")),
  epsStep: () => sub(id("\u03b5"), t()),
  z: () => id("z"),
  mu: () => row(id("\u03bc"), "(", sym.xt(), ")"),
  alpha: () => sub(id("\u03b1"), t()),
  beta: () => sub(id("\u03b2"), t()),
  alphaBar: () => sub(bar(id("\u03b1")), t()),
  betaBar: () => sub(bar(id("\u03b2")), t()),
  betaTilde: () => sub(tilde(id("\u03b2")), t()),
  sigma: () => sub(id("\u03c3"), t()),
  eta: () => id("\u03b7"),
  m: () => id("m"),
};

/** A formula on a line of its own, or within one. */
export function math(...parts) {
  return m("math", { displaystyle: "true" }, row(...parts));
}

/** Symbols that read as words in a sentence: <math> within text. */
export const inline = (symbol) => m("math", null, symbol());

/** A formula, and beneath it the same with its present values; update({…}) sets these. */
export function formula(symbols, values) {
  const now = h("div", { class: "formula-now" });
  const element = h("div", { class: "formula" }, h("div", { class: "formula-said" }, math(...symbols)), now);
  return {
    element,
    update(state) {
      const parts = values(state);
      fill(now, parts ? math(...parts) : null);
    },
  };
}

/** A number in a formula: of as many decimals as before, so that nothing jumps. */
export const value = (number, decimals = 3) => m("mrow", null, n(fixed(number, decimals)), m("mspace", { width: "0.17em" }));

/** x_t = ᾱ_t x_0 + β̄_t ε̄ */
export const destroying = () =>
  formula(
    [sym.xt(), "=", sym.alphaBar(), sym.x0(), "+", sym.betaBar(), sym.eps()],
    ({ alpha_bar, beta_bar }) => [sym.xt(), "=", value(alpha_bar), sym.x0(), "+", value(beta_bar), sym.eps()],
  );

/** ᾱ_t² + β̄_t² = 1 */
export const circle = () =>
  formula([squared(sym.alphaBar()), "+", squared(sym.betaBar()), "=", n("1")], ({ alpha_bar, beta_bar }) => [
    squared(value(alpha_bar)),
    "+",
    squared(value(beta_bar)),
    "=",
    value(alpha_bar ** 2 + beta_bar ** 2),
  ]);

/** x_{t−1} = μ(x_t) + σ_t z; σ is null where the network says it. */
export const stepping = () =>
  formula([sym.xBefore(), "=", sym.mu(), "+", sym.sigma(), sym.z()], ({ sigma }) =>
    sigma === undefined ? null : [sym.xBefore(), "=", sym.mu(), "+", sigma === null ? sym.sigma() : value(sigma, 4), sym.z()],
  );

/** μ(x_t) = (x_t − β_t ε_t) / α_t */
export const mean = () =>
  formula([sym.mu(), "=", frac(row(sym.xt(), "\u2212", sym.beta(), sym.epsStep()), sym.alpha())], ({ alpha, beta }) =>
    alpha === undefined || alpha === null
      ? null
      : [sym.mu(), "=", frac(row(sym.xt(), "\u2212", value(beta, 4), sym.epsStep()), value(alpha, 4))],
  );

/** x_{t−1} = μ(x_t) + η σ_t z, by the share η of the noise. */
export const sharing = () =>
  formula([sym.xBefore(), "=", sym.mu(), "+", sym.eta(), sym.sigma(), sym.z()], ({ eta }) => [
    sym.xBefore(),
    "=",
    sym.mu(),
    "+",
    value(eta, 2),
    sym.sigma(),
    sym.z(),
  ]);

/** x_0 = m y + (1 − m) x̂_0: what is known stands in its place. */
export const filling = () => said(sym.x0(), "=", sym.m(), id("y"), "+", row("(", n("1"), "\u2212", sym.m(), ")"), m("mspace", { width: "0.17em" }), sym.x0Hat());

/** x_T = (sin((1 − s) ω) a + sin(s ω) b) / sin ω, on the sphere. */
export const blending = () => {
  const sine = (...of) => row(id("sin"), row("(", ...of, ")"));
  const omega = () => id("\u03c9");
  const share = (...of) => frac(sine(...of), sine(omega()));
  return said(sub(id("x"), id("T")), "=", share(row("(", n("1"), "\u2212", id("s"), ")"), omega()), id("a"), "+", share(id("s"), omega()), id("b"));
};

/** A formula without values. */
const said = (...symbols) => ({ element: h("div", { class: "formula" }, h("div", { class: "formula-said" }, math(...symbols))) });
