// Axes: where a value lies, and which values to name.

import { num } from "./format.js";

/** A scale from values to pixels: {at, ticks}; kind is "linear", "log10" or "log2". */
export function scaled(kind, [low, high], [from, to], wanted = 5) {
  const inner = kind === "log10" ? Math.log10 : kind === "log2" ? Math.log2 : (value) => value;
  const a = inner(low);
  const b = inner(high);
  const span = b - a || 1;
  const at = (value) => from + ((inner(value) - a) / span) * (to - from);
  return { at, ticks: ticksOf(kind, low, high, wanted) };
}

function ticksOf(kind, low, high, wanted) {
  if (kind === "log2") return powers(2, low, high, 1);
  if (kind === "log10") {
    const tens = powers(10, low, high, 1);
    if (tens.length >= 3) return tens;
    const finer = [1, 2, 5].flatMap((k) => powers(10, low / k, high / k, k)).sort((x, y) => x - y);
    return finer.length >= 2 ? finer : even(low, high, wanted);
  }
  return even(low, high, wanted);
}

function powers(base, low, high, times) {
  const found = [];
  const first = Math.ceil(Math.log(low) / Math.log(base) - 1e-9);
  for (let k = first; base ** k <= high * (1 + 1e-9) && found.length < 40; k += 1) found.push(times * base ** k);
  return found;
}

function even(low, high, wanted) {
  const raw = (high - low) / wanted || 1;
  const size = 10 ** Math.floor(Math.log10(raw));
  const each = [1, 2, 5, 10].find((k) => k * size >= raw) * size;
  const found = [];
  for (let k = Math.ceil(low / each - 1e-9); k * each <= high + each * 1e-9 && found.length < 40; k += 1) found.push(k * each);
  return found.map((value) => Number(value.toPrecision(12)));
}

/** The least and greatest of values, with a little room; never empty. */
export function reach(values, kind) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value === null || value === undefined || !Number.isFinite(value) || (kind !== "linear" && value <= 0)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) return kind === "linear" ? [0, 1] : [1, 10];
  if (kind === "log2") return [low / 1.15, high * 1.15];
  if (kind === "log10") return low === high ? [low / 2, high * 2] : [low / 1.08, high * 1.08];
  if (low === high && low === 0) return [0, 1];
  if (low === high) return [low - Math.abs(low || 1) * 0.1, high + Math.abs(high || 1) * 0.1];
  return [low, high];
}

/** A tick's name: short, for large numbers have a unit. */
export function tickName(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${num(value / 1e6, 3)} M`;
  if (size >= 1e4) return `${num(value / 1e3, 3)} k`;
  return num(value, 3);
}
