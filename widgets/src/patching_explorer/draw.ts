/** Approximate against exact: how well they agree, and the scatter that shows it. */

import { css, type Range } from "../shared/colours.ts";
import { exact, short } from "../shared/numbers.ts";
import type { Theme } from "../shared/theme.ts";

export type Pair = readonly [approximate: number, exact: number];

export interface Agreement {
  count: number;
  /** Undefined below two pairs, or where one side never changes. */
  pearson: number | undefined;
  /** Growth of the approximation per unit of the exact effect, by least squares: below 1 it underestimates. */
  slope: number | undefined;
}

export function agreement(pairs: readonly Pair[]): Agreement {
  const count = pairs.length;
  const mean = (side: 0 | 1) => pairs.reduce((sum, pair) => sum + pair[side], 0) / count;
  const [a, e] = [mean(0), mean(1)];
  const sum = (of: (da: number, de: number) => number) => pairs.reduce((s, [x, y]) => s + of(x - a, y - e), 0);
  const [both, ofA, ofE] = [sum((x, y) => x * y), sum((x) => x * x), sum((_, y) => y * y)];
  if (count < 2 || !(ofE > 0)) return { count, pearson: undefined, slope: undefined };
  return { count, pearson: ofA > 0 ? both / Math.sqrt(ofA * ofE) : undefined, slope: both / ofE };
}

export function agreementWords({ count, pearson, slope }: Agreement, of: string): string {
  if (count === 0) return "";
  const cells = `${count} ${count === 1 ? "cell" : "cells"} ${of}`;
  if (count === 1) return `${cells}: one point has no correlation`;
  const number = (value: number | undefined) => (value === undefined ? "undefined" : value.toFixed(3));
  return `${cells}: Pearson ${number(pearson)} · slope ${number(slope)} (approximate per exact)`;
}

/** One range for both axes, zero and every point inside, with a margin. */
export function frameOf(pairs: readonly Pair[]): Range {
  const ends = pairs.flat();
  const low = ends.reduce((a, b) => Math.min(a, b), 0);
  const high = ends.reduce((a, b) => Math.max(a, b), 0);
  const margin = (high - low) * 0.08 || 1;
  return [low - margin, high + margin];
}

export interface Box {
  x: number;
  y: number;
  size: number;
}

/** Where a pair stands in the square. */
export function placed([approximate, exact]: Pair, [low, high]: Range, { x, y, size }: Box): [number, number] {
  const share = (value: number) => (value - low) / (high - low);
  return [x + share(approximate) * size, y + (1 - share(exact)) * size];
}

/** The pair nearest to a point of the square, if one is within reach. */
export function nearest(pairs: readonly Pair[], at: readonly [number, number], range: Range, box: Box, reach = 10) {
  let [best, distance] = [-1, reach];
  pairs.forEach((pair, index) => {
    const [x, y] = placed(pair, range, box);
    const away = Math.hypot(x - at[0], y - at[1]);
    // Later points lie on top.
    if (away <= distance) [best, distance] = [index, away];
  });
  return best < 0 ? undefined : best;
}

export type Mark = "check" | "run" | "known zero";

const ORANGE = css([224, 122, 36]);
const RADIUS = 4;

export function drawScatter(
  brush: CanvasRenderingContext2D,
  box: Box,
  points: readonly { pair: Pair; mark: Mark }[],
  chosen: number | undefined,
  unit: string,
  theme: Theme,
): void {
  const range = frameOf(points.map(({ pair }) => pair));
  drawAxes(brush, box, range, unit, theme);
  // Points of the check are many and go below; what was clicked lies on top.
  points.forEach(({ pair, mark }) => {
    const [x, y] = placed(pair, range, box);
    brush.beginPath();
    if (mark === "known zero") {
      brush.moveTo(x - RADIUS, y - RADIUS);
      brush.lineTo(x + RADIUS, y + RADIUS);
      brush.moveTo(x - RADIUS, y + RADIUS);
      brush.lineTo(x + RADIUS, y - RADIUS);
    } else brush.arc(x, y, mark === "run" ? RADIUS : RADIUS - 1, 0, 2 * Math.PI);
    brush.strokeStyle = mark === "run" ? theme.ink : theme.muted;
    brush.fillStyle = ORANGE;
    brush.lineWidth = 1;
    if (mark === "run") brush.fill();
    brush.stroke();
  });
  if (chosen === undefined || !points[chosen]) return;
  const [x, y] = placed(points[chosen].pair, range, box);
  brush.beginPath();
  brush.arc(x, y, RADIUS + 4, 0, 2 * Math.PI);
  brush.strokeStyle = theme.ink;
  brush.lineWidth = 1.5;
  brush.stroke();
}

function drawAxes(brush: CanvasRenderingContext2D, box: Box, range: Range, unit: string, theme: Theme): void {
  const { x, y, size } = box;
  const line = (from: Pair, to: Pair, colour: string, dash: number[]) => {
    brush.beginPath();
    brush.setLineDash(dash);
    brush.strokeStyle = colour;
    brush.moveTo(...placed(from, range, box));
    brush.lineTo(...placed(to, range, box));
    brush.stroke();
    brush.setLineDash([]);
  };
  brush.lineWidth = 1;
  brush.strokeStyle = theme.line;
  brush.strokeRect(x + 0.5, y + 0.5, size, size);
  line([range[0], 0], [range[1], 0], theme.line, []);
  line([0, range[0]], [0, range[1]], theme.line, []);
  line([range[0], range[0]], [range[1], range[1]], theme.muted, [4, 4]);
  brush.font = `11px ${theme.font}`;
  brush.fillStyle = theme.muted;
  const words = (text: string, left: number, top: number, align: CanvasTextAlign) => {
    brush.textAlign = align;
    brush.textBaseline = "top";
    brush.fillText(text, left, top);
  };
  words(short(range[0]), x, y + size + 4, "left");
  words(short(range[1]), x + size, y + size + 4, "right");
  words("approximate", x + size / 2, y + size + 4, "center");
  words("exact = approximate", x + size - 6, y + size - 16, "right");
  brush.save();
  brush.translate(x - 16, y + size / 2);
  brush.rotate(-Math.PI / 2);
  words(`exact${unit && ` (${unit})`}`, 0, 0, "center");
  brush.restore();
}

/** A number as Python has it; a missing approximation says so. */
export function said(value: number | null, unit: string): string {
  return value === null ? "none" : `${exact(value, "f8")}${unit && ` ${unit}`}`;
}

/** Four digits, for a list to glance over; the read-out has them all. */
export function brief(value: number | null): string {
  return value === null ? "none" : String(Number(value.toPrecision(4)));
}
