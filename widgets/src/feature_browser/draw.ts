/** The histogram of a feature: bars to places, places to bars, and words: no browser needed. */

import type { Numbers } from "../shared/bytes.ts";
import { short } from "../shared/numbers.ts";

export interface Box {
  x: number;
  y: number;
  width: number;
  height: number;
}
export interface Bar {
  x: number;
  width: number;
  height: number;
}

/** Heights go with the logarithm of the counts, so that a bar of one stays visible beside one of a million. */
export function bars(counts: Numbers, box: Box): Bar[] {
  const most = Math.log1p(Math.max(0, ...counts)) || 1;
  const each = box.width / counts.length;
  return Array.from(counts, (count, at) => ({
    x: box.x + at * each,
    width: Math.max(1, each - 1),
    height: count > 0 ? Math.max(1.5, (Math.log1p(count) / most) * box.height) : 0,
  }));
}

export function barAt(x: number, count: number, box: Box): number | undefined {
  const at = Math.floor(((x - box.x) / box.width) * count);
  return at >= 0 && at < count ? at : undefined;
}

export function barWords(edges: Numbers, counts: Numbers, at: number): [string, string] {
  return [`${short(edges[at])} to ${short(edges[at + 1])}`, String(counts[at])];
}

/** Share of the largest size that each value has, with its sign. */
export function shares(values: Numbers): number[] {
  const most = Math.max(0, ...Array.from(values, (value) => (Number.isFinite(value) ? Math.abs(value) : 0))) || 1;
  return Array.from(values, (value) => (Number.isFinite(value) ? value / most : 0));
}
