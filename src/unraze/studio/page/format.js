// Numbers, times and names as people read them.

const MINUS = "\u2212";

/** A number of so many significant digits; a dash for none. */
export function num(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "\u2013";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return scientific(value, digits);
  if (size >= 10 ** digits) return whole(value);
  return signed(Number(value.toPrecision(digits)).toString());
}

/** A number of so many decimals, so that a column of them stands still while it changes. */
export function fixed(value, decimals = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "\u2013";
  return signed(value.toFixed(decimals));
}

/** A whole number with its thousands apart. */
export function whole(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "\u2013";
  return signed(Math.round(value).toLocaleString("en"));
}

function scientific(value, digits) {
  const [mantissa, power] = value.toExponential(digits - 1).split("e");
  return `${signed(String(Number(mantissa)))}\u00d710${superscript(Number(power))}`;
}

function superscript(power) {
  const digits = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079";
  return (power < 0 ? "\u207b" : "") + [...String(Math.abs(power))].map((d) => digits[Number(d)]).join("");
}

function signed(text) {
  return text.replace("-", MINUS);
}

/** A value and its interval. */
export function interval(quality, digits = 3) {
  if (!quality || quality.value === null) return "\u2013";
  const ends = quality.low === null || quality.low === undefined ? "" : ` (${num(quality.low, digits)} to ${num(quality.high, digits)})`;
  return num(quality.value, digits) + ends;
}

/** Seconds as a clock would say them. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "";
  if (seconds < 1) return "under a second";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = seconds / 60;
  if (minutes < 90) return `${Math.round(minutes)} min`;
  const hours = minutes / 60;
  return hours < 48 ? `${num(hours, 2)} h` : `${Math.round(hours / 24)} days`;
}

/** How long ago a moment was; seconds of the epoch. */
export function ago(moment) {
  const seconds = Math.max(0, Date.now() / 1000 - moment);
  if (seconds < 60) return "just now";
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h ago`;
  return new Date(moment * 1000).toLocaleDateString("en-GB", { day: "numeric", month: "short", year: "numeric" });
}

/** Bytes in the unit that fits. */
export function bytes(count) {
  if (count === null || count === undefined) return "\u2013";
  if (count < 2 ** 20) return `${Math.round(count / 2 ** 10)} KiB`;
  return count < 2 ** 30 ? `${Math.round(count / 2 ** 20)} MiB` : `${(count / 2 ** 30).toFixed(1)} GiB`;
}

/** Height x width and colours of a shape (C, H, W). */
export function shapeWords(shape) {
  if (!shape) return "\u2013";
  const [channels, height, width] = shape;
  return `${height} \u00d7 ${width}, ${channels === 1 ? "grey" : channels === 3 ? "colour" : `${channels} channels`}`;
}

/** "1 picture", "2 pictures". */
export function counted(count, word, words = `${word}s`) {
  return `${whole(count)} ${count === 1 ? word : words}`;
}
