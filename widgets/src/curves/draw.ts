/** Curves to places: what to draw where, and what is near the mouse. No browser needed. */

import type { Numbers } from "../shared/bytes.ts";
import type { Extent, Scale } from "../shared/scale.ts";
import { shareAt } from "../shared/scale.ts";

export interface Box {
  x: number;
  y: number;
  width: number;
  height: number;
}

export interface Layout {
  width: number;
  height: number;
  plot: Box;
}

/** `bars`: from each x to the next, or around it where x counts things. */
export type Form = "lines" | "bars";

export interface Curve {
  name: string;
  values: Numbers;
  /** Lower ends, then upper ends. */
  band: Numbers | undefined;
}

const TALLEST = 320;
const LEAST_TALL = 180;
const ABOVE = 20;
const BELOW = 36;

/** Room for the plot in this width, beside tick labels of that width. */
export function layoutFor(width: number, label: number): Layout {
  const left = Math.ceil(label) + 10;
  const height = Math.round(Math.min(TALLEST, Math.max(LEAST_TALL, width * 0.45)));
  const plot = { x: left, y: ABOVE, width: Math.max(40, width - left - 12), height };
  return { width, height: ABOVE + height + BELOW, plot };
}

/** What the y axis has to hold: curves, bands, and the ground on which bars stand or that is near. */
export function withGround({ low, high, least }: Extent, form: Form): Extent {
  const near = low > 0 ? low <= high / 2 : high < 0 && high >= low / 2;
  if (form !== "bars" && !near) return { low, high, least };
  return { low: Math.min(0, low), high: Math.max(0, high), least };
}

export function placeX(scale: Scale, plot: Box, value: number): number {
  return plot.x + shareAt(scale, value) * plot.width;
}

export function placeY(scale: Scale, plot: Box, value: number): number {
  return plot.y + (1 - shareAt(scale, value)) * plot.height;
}

/** Stretches of neighbours that can be joined: `[first, last]`, where every line has a number. */
export function stretches(lines: readonly Numbers[], count: number, offset = 0): [number, number][] {
  const found: [number, number][] = [];
  let from = -1;
  for (let at = 0; at <= count; at++) {
    const here = at < count && lines.every((line) => Number.isFinite(line[offset + at]));
    if (here && from < 0) from = at;
    if (!here && from >= 0) {
      found.push([from, at - 1]);
      from = -1;
    }
  }
  return found;
}

/** Where each bar begins and ends on x. */
export function barEnds(x: Numbers, centred: boolean): [number, number][] {
  const last = x.length - 1;
  if (last < 1) return Array.from(x, (value) => [value - 0.5, value + 0.5]);
  const gaps = Array.from({ length: last }, (_, at) => x[at + 1] - x[at]);
  const half = Math.min(...gaps.filter((gap) => gap > 0)) * 0.45;
  return Array.from(x, (value, at) =>
    centred ? [value - half, value + half] : [value, at < last ? x[at + 1] : value + gaps[last - 1]],
  );
}

/** The point nearest to a place on the screen. Places ascend. */
export function nearestPoint(places: readonly number[], mouse: number): number {
  let [low, high] = [0, places.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (places[middle] < mouse) low = middle + 1;
    else high = middle;
  }
  return low > 0 && mouse - places[low - 1] <= places[low] - mouse ? low - 1 : low;
}

/** The last bar that begins at or before a place on the screen. */
export function barAt(places: readonly number[], mouse: number): number {
  const near = nearestPoint(places, mouse);
  return places[near] > mouse && near > 0 ? near - 1 : near;
}

/** Of several curves the one nearest to the mouse at one point; undefined where all are missing. */
export function nearestCurve(heights: readonly number[], mouse: number): number | undefined {
  let best: number | undefined;
  heights.forEach((height, at) => {
    if (!Number.isFinite(height)) return;
    if (best === undefined || Math.abs(height - mouse) < Math.abs(heights[best] - mouse)) best = at;
  });
  return best;
}

/** The largest size of a curve. */
export function peakOf(values: Numbers): number {
  let best = 0;
  values.forEach((value, at) => {
    if (Number.isFinite(value) && !(Math.abs(value) <= Math.abs(values[best]))) best = at;
  });
  return best;
}

/** The place of an index of the whole result among the points that are here, or of the nearest one. */
export function placeOf(indices: Numbers | undefined, count: number, index: number): number {
  if (!indices) return Math.min(Math.max(0, index), count - 1);
  let best = 0;
  for (let at = 1; at < count; at++) if (Math.abs(indices[at] - index) < Math.abs(indices[best] - index)) best = at;
  return best;
}
