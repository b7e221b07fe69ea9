/** Numbers as words: exact where a reader points, short where they only label. */

import type { Dtype } from "./bytes.ts";

/** The shortest decimal that names this very float, as numpy and Python print it. */
export function exact(value: number, dtype: Dtype): string {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  if (dtype !== "f4") return String(value);
  for (let digits = 1; digits < 9; digits++) {
    const text = value.toPrecision(digits);
    if (Math.fround(Number(text)) === value) return String(Number(text));
  }
  return String(Number(value.toPrecision(9)));
}

/** Three significant digits, without a tail of zeros: for axes, bars and captions. */
export function short(value: number): string {
  if (!Number.isFinite(value)) return exact(value, "f8");
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(2).replace(/\.?0+e\+?/, "e");
  return String(Number(value.toPrecision(size >= 1000 ? 4 : 3)));
}

/** `low to high`, with ± for a range around zero. */
export function span([low, high]: readonly [number, number]): string {
  return low === -high ? `±${short(high)}` : `${short(low)} to ${short(high)}`;
}

/** As many decimals as the scale can tell apart, so that numbers in neighbouring cells line up. */
export function atScale(value: number, [low, high]: readonly [number, number]): string {
  const size = Math.max(Math.abs(low), Math.abs(high));
  const decimals = size > 0 ? 2 - Math.floor(Math.log10(size)) : 0;
  return decimals > 6 ? short(value) : value.toFixed(Math.max(0, decimals)).replace(/^-(0\.?0*)$/, "$1");
}
