/** Numbers to places along an axis: linear, logarithmic, or logarithmic away from zero. */

import type { Numbers } from "./bytes.ts";

/** What the drawn values of one axis span. `least`: the smallest size above 0, or 0 if there is none. */
export interface Extent {
  low: number;
  high: number;
  least: number;
}

/** `symlog`: logarithmic in both directions, linear between -knee and knee, so that 0 has a place. */
export interface Scale {
  kind: "linear" | "log" | "symlog";
  knee: number;
  /** Ends of the axis, in bent units. */
  from: number;
  to: number;
}

/** More decades than this below the largest value would leave no room for the others. */
const DECADES = 8;
/** On both sides of 0 the smallest numbers are mere crossings, which say nothing. */
const SIGNED_DECADES = 4;
/** Free space at both ends, as a share. */
const MARGIN = 0.04;

export function extentOf(lines: readonly Numbers[]): Extent {
  const found = { low: Number.POSITIVE_INFINITY, high: Number.NEGATIVE_INFINITY, least: Number.POSITIVE_INFINITY };
  for (const line of lines)
    for (const value of line) {
      if (!Number.isFinite(value)) continue;
      found.low = Math.min(found.low, value);
      found.high = Math.max(found.high, value);
      if (value !== 0) found.least = Math.min(found.least, Math.abs(value));
    }
  if (found.low > found.high) return { low: 0, high: 1, least: 0 };
  return { ...found, least: Number.isFinite(found.least) ? found.least : 0 };
}

/** An axis for these values; with `log` a logarithmic one wherever there is anything but 0. */
export function scaleFor({ low, high, least }: Extent, log: boolean, margin = MARGIN): Scale {
  const size = Math.max(Math.abs(low), Math.abs(high));
  const kind = !log || !least ? "linear" : low > 0 ? "log" : "symlog";
  const knee =
    kind === "symlog"
      ? 10 ** Math.floor(Math.log10(Math.max(least, size / 10 ** (low < 0 ? SIGNED_DECADES : DECADES))))
      : 1;
  const scale: Scale = { kind, knee, from: 0, to: 1 };
  const [from, to] = [bent(scale, low), bent(scale, high)];
  const room = to > from ? (to - from) * margin : kind === "linear" ? (size || 1) * 0.1 : 0.3;
  return { ...scale, from: from - room, to: to + room };
}

/** A value in the units in which the axis is even. */
export function bent({ kind, knee }: Pick<Scale, "kind" | "knee">, value: number): number {
  if (kind === "linear") return value;
  if (kind === "log") return value > 0 ? Math.log10(value) : Number.NEGATIVE_INFINITY;
  const size = Math.abs(value) / knee;
  return Math.sign(value) * (size <= 1 ? size : 1 + Math.log10(size));
}

/** Share of the axis at which a value stands; outside 0 to 1 where the axis does not reach. */
export function shareAt(scale: Scale, value: number): number {
  return (bent(scale, value) - scale.from) / (scale.to - scale.from);
}

/** Round values along the axis, at least `gap` apart in shares of it. `whole`: only whole numbers mean anything. */
export function ticksFor(scale: Scale, gap: number, whole = false): number[] {
  if (scale.kind === "linear") return steps(scale.from, scale.to, gap, whole);
  const marks = scale.kind === "log" ? decades(scale.from, scale.to) : mirrored(scale);
  // Less than two decades have room for more than their powers, and a narrow range for no power at all.
  const inside = marks.filter((value) => onAxis(scale, value));
  if (inside.length < 3 && scale.kind === "log") return between(scale, gap);
  const every = Math.max(1, Math.ceil(inside.length * gap));
  const zero = Math.max(0, inside.indexOf(0));
  return inside.filter((_, at) => (at - zero) % every === 0);
}

function onAxis(scale: Scale, value: number): boolean {
  const share = shareAt(scale, value);
  return share >= -1e-9 && share <= 1 + 1e-9;
}

/** 1, 2, 5, 10, 20 … apart. */
function steps(from: number, to: number, gap: number, whole: boolean): number[] {
  const wanted = (to - from) * gap;
  const power = 10 ** Math.floor(Math.log10(wanted));
  const step = Math.max([1, 2, 5, 10].map((m) => m * power).find((s) => s >= wanted * (1 - 1e-9))!, whole ? 1 : 0);
  const first = Math.ceil(from / step - 1e-9);
  const count = Math.floor(to / step + 1e-9) - first + 1;
  // Products of a step would show their rounding: 3 * 0.1 is not 0.3.
  return Array.from({ length: count }, (_, at) => Number(((first + at) * step).toPrecision(12)) + 0);
}

function decades(from: number, to: number): number[] {
  const first = Math.ceil(from - 1e-9);
  return Array.from({ length: Math.max(0, Math.floor(to + 1e-9) - first + 1) }, (_, at) => Number(`1e${first + at}`));
}

function mirrored({ knee, from, to }: Scale): number[] {
  const up = decades(Math.log10(knee), Math.log10(knee) + Math.max(Math.abs(from), Math.abs(to)) - 1);
  return [...up.map((value) => -value).reverse(), 0, ...up];
}

/** Ticks of a log axis of less than two decades: 1, 2 and 5 of each if they fit, else evenly spaced numbers. */
function between(scale: Scale, gap: number): number[] {
  const fine = decades(Math.floor(scale.from), scale.to).flatMap((power) => [1, 2, 5].map((m) => m * power));
  const inside = fine.filter((value) => onAxis(scale, value));
  if (inside.length >= 3) return inside.length * gap <= 1 ? inside : inside.filter((_, at) => at % 2 === 0);
  return steps(10 ** scale.from, 10 ** scale.to, Math.max(gap, 0.2), false);
}
