/** What stands around the cells: axis names and labels, the colour bar, cursor and pins. */

import { type BarSpec, drawBar } from "../shared/bar.ts";
import { inkOn, mix, type Range, type Rgb, shareOf } from "../shared/colours.ts";
import { atScale } from "../shared/numbers.ts";
import { cut, visible } from "../shared/text.ts";
import type { Theme } from "../shared/theme.ts";
import { type Box, type Cell, plotSize, type Region, type Size, seen, ticks, type View } from "./view.ts";

export interface Axis {
  name: string;
  count: number;
  /** Names along the axis, or nothing where places are only counted. */
  names?: readonly string[] | undefined;
}

export interface Layout {
  width: number;
  height: number;
  plot: Box;
  bar: Box;
  slanted: boolean;
  /** Where the name of the row axis stands: beside its labels, however far slanted ones have pushed the plot. */
  nameX: number;
}

type Measure = (words: string) => number;

const SMALL = 11;
const LONGEST = 26;
// Slanted labels reach down and to the left, where other things stand.
const LONGEST_SLANTED = 16;
const BAR = { gap: 14, width: 12, words: 58 };

export function labelOf(axis: Axis, index: number, longest = LONGEST): string {
  return cut(visible(axis.names?.[index] ?? String(index)), longest);
}

/** Widths of the labels of an axis. */
function widths(axis: Axis, measure: Measure, longest = LONGEST): number[] {
  if (!axis.names) return [measure(String(axis.count - 1))];
  // A few hundred labels stand for the rest: measuring ten thousand would be seen.
  return axis.names.slice(0, 300).map((_, index) => measure(labelOf(axis, index, longest)));
}

/** Room for everything in this width. */
export function layoutFor(width: number, rows: Axis, columns: Axis, measure: Measure): Layout {
  const rowWords = rows.count === 1 && !rows.name ? 0 : Math.min(Math.max(...widths(rows, measure)), width / 4);
  const edge = Math.ceil(rowWords) + (rows.name ? 30 : 8);
  const sizeAt = (left: number) =>
    plotSize(
      { rows: rows.count, columns: columns.count },
      Math.max(60, width - left - BAR.gap - BAR.width - BAR.words),
    );
  const cell = sizeAt(edge).width / columns.count;
  const slanted = columns.names !== undefined && Math.max(...widths(columns, measure)) + 8 > cell;
  const leaning = slanted ? widths(columns, measure, LONGEST_SLANTED).map((words) => words * 0.71) : [0];
  // The first labels lean out to the left: make room for them, or they would be cut.
  const left = Math.ceil(Math.max(edge, ...leaning.map((lean, index) => lean + 8 - (index + 0.5) * cell)));
  const size = sizeAt(left);
  const below = (slanted ? Math.max(...leaning) + 14 : 17) + 18;
  const top = 6;
  const barHeight = Math.max(48, Math.min(size.height, 220));
  return {
    width: Math.min(width, left + size.width + BAR.gap + BAR.width + BAR.words),
    height: Math.ceil(Math.max(top + size.height + below, top + barHeight + 8)),
    plot: { x: left, y: top, ...size },
    bar: { x: left + size.width + BAR.gap, y: top, width: BAR.width, height: barHeight },
    slanted,
    nameX: left - edge + 9,
  };
}

export function drawAround(
  brush: CanvasRenderingContext2D,
  layout: Layout,
  view: View,
  [rows, columns]: readonly [Axis, Axis],
  bar: BarSpec,
  theme: Theme,
): void {
  const { plot } = layout;
  brush.font = `${SMALL}px ${theme.font}`;
  brush.strokeStyle = theme.line;
  brush.strokeRect(plot.x - 0.5, plot.y - 0.5, plot.width + 1, plot.height + 1);
  drawRows(brush, layout, view, rows, theme);
  drawColumns(brush, layout, view, columns, theme);
  drawBar(brush, layout.bar, bar, theme);
}

function drawRows(
  brush: CanvasRenderingContext2D,
  { plot, nameX }: Layout,
  view: View,
  axis: Axis,
  theme: Theme,
): void {
  if (!axis.name && axis.count === 1) return;
  const last = Math.min(axis.count, view.y + plot.height / view.sy);
  brush.textAlign = "right";
  brush.textBaseline = "middle";
  brush.fillStyle = theme.ink;
  for (const index of ticks(view.y - 0.5, last, view.sy, axis.names ? 14 : 24)) {
    const y = plot.y + (index + 0.5 - view.y) * view.sy;
    if (index >= 0 && y >= plot.y && y <= plot.y + plot.height)
      brush.fillText(labelOf(axis, index), plot.x - 6, y, plot.x - 24);
  }
  brush.save();
  brush.translate(nameX, plot.y + plot.height / 2);
  brush.rotate(-Math.PI / 2);
  brush.textAlign = "center";
  brush.fillStyle = theme.muted;
  brush.fillText(axis.name, 0, 0, Math.max(plot.height, 60));
  brush.restore();
}

function drawColumns(brush: CanvasRenderingContext2D, layout: Layout, view: View, axis: Axis, theme: Theme): void {
  const { plot, slanted, height } = layout;
  const last = Math.min(axis.count, view.x + plot.width / view.sx);
  const gap = slanted ? 14 : Math.max(26, brush.measureText(String(axis.count)).width + 12);
  const flatGap = axis.names && !slanted ? 1 : gap;
  brush.fillStyle = theme.ink;
  for (const index of ticks(view.x - 0.5, last, view.sx, flatGap)) {
    const x = plot.x + (index + 0.5 - view.x) * view.sx;
    if (index < 0 || x < plot.x || x > plot.x + plot.width) continue;
    brush.save();
    brush.translate(x, plot.y + plot.height + 6);
    if (slanted) brush.rotate(-Math.PI / 4);
    brush.textAlign = slanted ? "right" : "center";
    brush.textBaseline = slanted ? "middle" : "top";
    brush.fillText(labelOf(axis, index, slanted ? LONGEST_SLANTED : LONGEST), 0, slanted ? 2 : 0);
    brush.restore();
  }
  brush.textAlign = "center";
  brush.textBaseline = "bottom";
  brush.fillStyle = theme.muted;
  brush.fillText(axis.name, plot.x + plot.width / 2, Math.min(height - 2, height));
}

/** Cursor and pins: white inside black, so that they show on any colour. */
export function drawMarks(
  brush: CanvasRenderingContext2D,
  plot: Box,
  view: View,
  cursor: Cell | undefined,
  pins: readonly Cell[],
) {
  brush.save();
  brush.beginPath();
  brush.rect(plot.x - 2, plot.y - 2, plot.width + 4, plot.height + 4);
  brush.clip();
  const outline = ([row, column]: Cell, grow: number, inner: string, outer: string) => {
    // At least five pixels wide, or the mark on a tiny cell could not be seen.
    const [width, height] = [Math.max(5, view.sx), Math.max(5, view.sy)];
    const x = plot.x + (column + 0.5 - view.x) * view.sx - width / 2;
    const y = plot.y + (row + 0.5 - view.y) * view.sy - height / 2;
    for (const [colour, line] of [
      [outer, 3.5],
      [inner, 1.5],
    ] as const) {
      brush.strokeStyle = colour;
      brush.lineWidth = line;
      brush.strokeRect(x - grow, y - grow, width + 2 * grow - 1, height + 2 * grow - 1);
    }
  };
  for (const pin of pins) outline(pin, 0, "#fff", "#000");
  if (cursor) outline(cursor, 0, "#000", "#fff");
  brush.restore();
}

/** Numbers inside large cells, in the ink that reads on their colour. */
export function drawNumbers(
  brush: CanvasRenderingContext2D,
  plot: Box,
  view: View,
  size: Size,
  ramp: readonly Rgb[],
  range: Range,
  valueAt: (cell: Cell) => number,
): void {
  if (view.sx < 44 || view.sy < 16) return;
  const { top, left, bottom, right } = seen(view, size, plot);
  brush.save();
  brush.beginPath();
  brush.rect(plot.x, plot.y, plot.width, plot.height);
  brush.clip();
  brush.textAlign = "center";
  brush.textBaseline = "middle";
  for (let row = top; row < bottom; row++)
    for (let column = left; column < right; column++) {
      const value = valueAt([row, column]);
      if (!Number.isFinite(value)) continue;
      brush.fillStyle = inkOn(mix(ramp, shareOf(value, range)));
      const [x, y] = [plot.x + (column + 0.5 - view.x) * view.sx, plot.y + (row + 0.5 - view.y) * view.sy];
      brush.fillText(atScale(value, range), x, y, view.sx - 6);
    }
  brush.restore();
}

/** The visible cells as lines of a table: names along both axes, then values. */
export function sheet(
  [rows, columns]: readonly [Axis, Axis],
  region: Region,
  value: (row: number, column: number) => number,
): (string | number)[][] {
  const count = (from: number, to: number) => Array.from({ length: to - from }, (_, at) => from + at);
  const name = (axis: Axis, index: number) => axis.names?.[index] ?? String(index);
  const across = count(region.left, region.right);
  const head = [`${rows.name}\\${columns.name}`, ...across.map((column) => name(columns, column))];
  const body = count(region.top, region.bottom).map((row) => [
    name(rows, row),
    ...across.map((column) => value(row, column)),
  ]);
  return [head, ...body];
}
