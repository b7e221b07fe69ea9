/** Blocks of a grid to places on a screen that is turned, and back. No browser needed. */

import type { Numbers } from "../shared/bytes.ts";
import { type Scale, shareAt } from "../shared/scale.ts";

/** The blocks that a grid was cut into. Each stands for its value furthest from 0, which stands at an offset in it. */
export interface Land {
  rows: number;
  columns: number;
  values: Numbers;
  offsets: Numbers;
  steps: readonly [number, number];
}

export type Cell = readonly [row: number, column: number];

/** A height over a place on the ground. */
export interface Peak {
  u: number;
  v: number;
  height: number;
}

export interface Camera {
  yaw: number;
  pitch: number;
}

export interface Box {
  x: number;
  y: number;
  width: number;
  height: number;
}

/** Places on the ground run from 0 to 1: `u` along the columns, `v` along the rows; so does the height. */
export interface Projection {
  at(u: number, v: number, height: number): [x: number, y: number];
  /** How far from the reader. */
  depth(u: number, v: number): number;
}

const WIDE = 1.6;
const DEEP = 0.9;
const TALL = 0.6;
const STRETCH = 1.7;

/**
 * The ground, its scale of heights and these peaks in this box. Parallel lines stay parallel, so that equal heights look
 * equal.
 */
export function projectionFor({ yaw, pitch }: Camera, box: Box, peaks: readonly Peak[]): Projection {
  const [turn, tilt] = [(yaw * Math.PI) / 180, (pitch * Math.PI) / 180];
  const depth = (u: number, v: number) => (u - 0.5) * WIDE * Math.sin(turn) + (v - 0.5) * DEEP * Math.cos(turn);
  const across = (u: number, v: number) => (u - 0.5) * WIDE * Math.cos(turn) - (v - 0.5) * DEEP * Math.sin(turn);
  const up = (u: number, v: number, height: number) => depth(u, v) * Math.sin(tilt) + height * TALL * Math.cos(tilt);
  const corners = [0, 1].flatMap((u) => [0, 1].map((v) => ({ u, v, height: 0 })));
  const leftmost = corners.reduce((best, one) => (across(one.u, one.v) < across(best.u, best.v) ? one : best));
  const xs = corners.map(({ u, v }) => across(u, v));
  const ys = [...corners, { ...leftmost, height: 1 }, ...peaks].map(({ u, v, height }) => up(u, v, height));
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const [wide, tall] = [box.width / (right - left), box.height / (high - low)];
  // A box of another shape is filled by stretching, within reason: no two axes here share a unit.
  const [scaleX, scaleY] = [Math.min(wide, STRETCH * tall), Math.min(tall, STRETCH * wide)];
  const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
  return {
    at: (u, v, height) => [
      x + (across(u, v) - (left + right) / 2) * scaleX,
      y - (up(u, v, height) - (low + high) / 2) * scaleY,
    ],
    depth,
  };
}

/** Where the middle of a block stands on the ground. */
export function groundOf({ rows, columns }: Land, block: number): [u: number, v: number] {
  return [((block % columns) + 0.5) / columns, (Math.floor(block / columns) + 0.5) / rows];
}

/** The cell that stands for a block. */
export function cellOf({ columns, offsets, steps }: Land, block: number): Cell {
  const [row, column] = [Math.floor(block / columns), block % columns];
  return [row * steps[0] + Math.floor(offsets[block] / steps[1]), column * steps[1] + (offsets[block] % steps[1])];
}

/** The block that a cell lies in. */
export function blockOf({ columns, steps }: Land, [row, column]: Cell): number {
  return Math.floor(row / steps[0]) * columns + Math.floor(column / steps[1]);
}

/** Sizes as shares of the tallest; NaN where there is no value, 1 where there is no end to it. */
export function heightsOf(values: Numbers, scale: Scale): Float32Array {
  return Float32Array.from(values, (value) => Math.min(1, shareAt(scale, Math.abs(value))));
}

/** The scale of heights: from 0 to the largest size; logarithmic above what is usual, which stays low. */
export function heightScale(top: number, median: number, log: boolean): Scale {
  if (!log || !(median > 0)) return { kind: "linear", knee: 1, from: 0, to: top || 1 };
  const knee = 10 ** Math.ceil(Math.log10(median));
  return { kind: "symlog", knee, from: 0, to: 1 + Math.log10(Math.max(1, top / knee)) };
}

/** The ridges, the furthest first: rows, or columns where those face the reader. */
export function ridges(
  { rows, columns }: Land,
  { yaw }: Camera,
): { blocks: (line: number) => number[]; lines: number[] } {
  const turn = (yaw * Math.PI) / 180;
  const byRows = Math.abs(Math.cos(turn)) >= Math.abs(Math.sin(turn));
  const count = byRows ? rows : columns;
  const lines = Array.from({ length: count }, (_, line) => line);
  if ((byRows ? Math.cos(turn) : Math.sin(turn)) > 0) lines.reverse();
  const each = byRows ? columns : rows;
  const blocks = (line: number) =>
    Array.from({ length: each }, (_, at) => (byRows ? line * columns + at : at * columns + line));
  return { blocks, lines };
}

/** A hand is not steady, and a ridge of one block is a line. */
const REACH = 3;

/** The block that is seen at a place on the screen: of those that stand there the nearest to the reader. */
export function blockAt(
  land: Land,
  heights: Float32Array,
  projection: Projection,
  x: number,
  y: number,
): number | undefined {
  const [from] = projection.at(0, 0.5, 0);
  const [to] = projection.at(1, 0.5, 0);
  const reach = Math.max(REACH, Math.abs(to - from) / land.columns / 2);
  let best: number | undefined;
  let nearest = Number.POSITIVE_INFINITY;
  for (let block = 0; block < heights.length; block++) {
    if (Number.isNaN(heights[block])) continue;
    const [u, v] = groundOf(land, block);
    const [left, bottom] = projection.at(u, v, 0);
    if (Math.abs(left - x) > reach || y > bottom + REACH) continue;
    if (y < projection.at(u, v, heights[block])[1] - REACH) continue;
    const depth = projection.depth(u, v);
    if (depth >= nearest) continue;
    nearest = depth;
    best = block;
  }
  return best;
}

/** Colour of a block: 0 masked, 1 to 4 below zero, 5 to 8 above, by height. */
export function tintsOf(values: Numbers, heights: Float32Array, masked: Numbers | undefined): Uint8Array {
  return Uint8Array.from(heights, (height, block) => {
    if (masked?.[block]) return 0;
    return 1 + (values[block] < 0 ? 0 : 4) + Math.min(3, Math.floor((height || 0) * 4));
  });
}

/** The turned camera; looking from below would show nothing. */
export function turned({ yaw, pitch }: Camera, right: number, down: number): Camera {
  return { yaw: ((((yaw + right + 180) % 360) + 360) % 360) - 180, pitch: Math.min(90, Math.max(5, pitch + down)) };
}

export interface Label {
  x: number;
  y: number;
  width: number;
}

const LINE = 14;
const STEP = 3.5;

/** Places for labels above their peaks: inside the width, each moved up, or else down, until it overlaps none before it. */
export function placed(peaks: readonly Label[], width: number): { x: number; y: number }[] {
  const taken: Label[] = [];
  for (const peak of peaks) {
    const x = Math.min(Math.max(peak.x, peak.width / 2 + 2), width - peak.width / 2 - 2);
    const start = Math.max(LINE / 2, peak.y - LINE);
    const up = Array.from({ length: Math.floor((start - LINE / 2) / STEP) + 1 }, (_, at) => start - at * STEP);
    const down = Array.from({ length: peaks.length * 4 + 8 }, (_, at) => start + (at + 1) * STEP);
    const free = (y: number) =>
      taken.every(
        (other) => Math.abs(other.x - x) >= (other.width + peak.width) / 2 + 4 || Math.abs(other.y - y) >= LINE,
      );
    taken.push({ x, y: [...up, ...down].find(free) ?? start, width: peak.width });
  }
  return taken.map(({ x, y }) => ({ x, y }));
}
