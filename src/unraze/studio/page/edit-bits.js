// A mask as text: one bit a pixel, row by row, eight in a byte with the first as the highest, in base64.

/** Of an array of 0 and 1. */
export function packed(bits) {
  const bytes = new Uint8Array(Math.ceil(bits.length / 8));
  bits.forEach((bit, k) => { bytes[k >> 3] |= bit << (7 - (k & 7)); });
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}

/** An array of `count` 0 and 1; of a text that is none, or of another size, all are 0. */
export function unpacked(text, count) {
  const bits = new Uint8Array(count);
  let bytes = "";
  try {
    bytes = atob(text ?? "");
  } catch {
    return bits; // an address that somebody shortened
  }
  if (bytes.length !== Math.ceil(count / 8)) return bits;
  return bits.map((_, k) => (bytes.charCodeAt(k >> 3) >> (7 - (k & 7))) & 1);
}
