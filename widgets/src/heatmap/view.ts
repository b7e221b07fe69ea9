/** Which cells are on screen: fitting, zooming, panning and finding, as plain arithmetic. */

export interface Box {
  x: number;
  y: number;
  width: number;
  height: number;
}

/** First cell at the plot's upper left corner (fractions allowed), and CSS pixels per cell. */
export interface View {
  x: number;
  y: number;
  sx: number;
  sy: number;
}

export interface Size {
  rows: number;
  columns: number;
}

/** Rows from `top` up to but not including `bottom`, columns likewise. */
export interface Region {
  top: number;
  left: number;
  bottom: number;
  right: number;
}

export type Cell = readonly [row: number, column: number];

const BIGGEST_CELL = 28;
// A grid of few columns has room for its numbers inside the cells.
const NUMBERED_CELL = 50;
const FEW_COLUMNS = 14;
const TALLEST = 460;
const NARROWEST = 200;
const TEXTURE_WIDTH = 620;
const ZOOMED_CELL = 72;

/** Plot size for a grid in this width: square cells where they whole, never taller than a screen, rows never hair-thin. */
export function plotSize({ rows, columns }: Size, room: number): { width: number; height: number } {
  let width = Math.min(
    room,
    columns * (columns <= FEW_COLUMNS && rows * NUMBERED_CELL <= TALLEST ? NUMBERED_CELL : BIGGEST_CELL),
  );
  let height = rows * (width / columns);
  if (height > TALLEST) {
    width = Math.max(Math.min(width, NARROWEST), (columns * TALLEST) / rows);
    height = TALLEST;
  }
  // Cells this small are texture: their shape says nothing, and more pixels show more.
  if (width / columns < 2) width = Math.max(width, Math.min(room, TEXTURE_WIDTH));
  const readable = rows <= 32 ? rows * 14 : Math.min(rows * 2, TALLEST);
  return { width: Math.floor(Math.max(width, Math.min(room, 60))), height: Math.floor(Math.max(height, readable)) };
}

/** The whole grid in the plot. */
export function whole({ rows, columns }: Size, box: Box): View {
  return { x: 0, y: 0, sx: box.width / columns, sy: box.height / rows };
}

/** Zoom about a point of the plot (CSS pixels from its corner); the cell under the point stays there. */
export function zoomed(view: View, by: number, at: { x: number; y: number }, size: Size, box: Box): View {
  const least = whole(size, box);
  const limit = (scale: number, low: number) => Math.min(Math.max(scale, low), Math.max(low, ZOOMED_CELL));
  const sx = limit(view.sx * by, least.sx);
  const sy = limit(view.sy * by, least.sy);
  return inside({ x: view.x + at.x / view.sx - at.x / sx, y: view.y + at.y / view.sy - at.y / sy, sx, sy }, size, box);
}

/** Move by CSS pixels. */
export function panned(view: View, dx: number, dy: number, size: Size, box: Box): View {
  return inside({ ...view, x: view.x - dx / view.sx, y: view.y - dy / view.sy }, size, box);
}

/** The nearest view that shows no emptiness beyond the edges. */
export function inside(view: View, { rows, columns }: Size, box: Box): View {
  const clamp = (start: number, count: number, seen: number) => Math.min(Math.max(0, start), Math.max(0, count - seen));
  return { ...view, x: clamp(view.x, columns, box.width / view.sx), y: clamp(view.y, rows, box.height / view.sy) };
}

/** The smallest move that brings a cell into view. */
export function revealing(view: View, [row, column]: Cell, size: Size, box: Box): View {
  const show = (start: number, at: number, seen: number) => Math.min(Math.max(start, at + 1 - seen), at);
  const x = show(view.x, column, box.width / view.sx);
  const y = show(view.y, row, box.height / view.sy);
  return inside({ ...view, x, y }, size, box);
}

/** The cell under a point of the plot, if there is one. */
export function cellAt(view: View, x: number, y: number, { rows, columns }: Size): Cell | undefined {
  const row = Math.floor(view.y + y / view.sy);
  const column = Math.floor(view.x + x / view.sx);
  return row >= 0 && column >= 0 && row < rows && column < columns ? [row, column] : undefined;
}

/** First and last cells in view along both directions. */
export function seen(view: View, { rows, columns }: Size, box: Box): Region {
  return {
    top: Math.max(0, Math.floor(view.y)),
    left: Math.max(0, Math.floor(view.x)),
    bottom: Math.min(rows, Math.ceil(view.y + box.height / view.sy)),
    right: Math.min(columns, Math.ceil(view.x + box.width / view.sx)),
  };
}

/** Places for labels at least `gap` pixels apart, at 1, 2, 5, 10, 20, … cells. */
export function ticks(first: number, end: number, perCell: number, gap: number): number[] {
  const wanted = gap / perCell;
  const power = 10 ** Math.max(0, Math.floor(Math.log10(wanted)));
  const step = wanted <= 1 ? 1 : [1, 2, 5, 10].map((m) => m * power).find((s) => s >= wanted)!;
  const found: number[] = [];
  for (let at = Math.ceil(first / step) * step; at < end; at += step) found.push(at);
  return found;
}
