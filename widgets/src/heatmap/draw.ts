/** Cells to pixels. Pixel-driven: every screen pixel looks up its cells, so cost follows the screen, not the data. */

import { MISSING } from "../shared/colours.ts";
import type { Look } from "./masks.ts";
import type { Size, View } from "./view.ts";

/** A block of quantised cells; `x`, `y` is its first cell, `stepX`, `stepY` the cells pooled into one code. */
export interface Layer {
  codes: Uint8Array;
  width: number;
  height: number;
  x: number;
  y: number;
  stepX: number;
  stepY: number;
}

export interface Sheet {
  words: Uint32Array;
  width: number;
  height: number;
}

/** Below this many device pixels a cell has no gap to its neighbour. */
const GAP_FROM = 12;

/** Device-independent pixels from one diagonal line to the next. */
const HATCH = 6;
/** Grey that shows on every colour of both themes, as a little-endian RGBA word. */
const LINE = 0xff808080;

/**
 * Mark masked cells on a painted sheet: blank ones lose their colour, others get diagonal lines.
 * The lines run on from cell to cell, so that a masked region reads as one; where cells share a pixel the first decides.
 */
export function showMasks(
  sheet: Sheet,
  view: View,
  { rows, columns }: Size,
  bits: ArrayLike<number>,
  looks: readonly Look[],
  density: number,
): void {
  const bitsOf = (look: Look) => looks.reduce((sum, one, bit) => (one === look ? sum | (1 << bit) : sum), 0);
  const [blank, up, down] = [bitsOf("blank"), bitsOf("up"), bitsOf("down")];
  const period = Math.round(HATCH * density);
  const thick = Math.max(1, Math.round(density));
  const across = Int32Array.from({ length: sheet.width }, (_, x) => Math.floor(view.x + x / view.sx + 1e-6));
  for (let y = 0; y < sheet.height; y++) {
    const row = Math.floor(view.y + y / view.sy + 1e-6);
    if (row < 0 || row >= rows) continue;
    for (let x = 0; x < sheet.width; x++) {
      const at = y * sheet.width + x;
      const here = across[x] >= 0 && across[x] < columns ? bits[row * columns + across[x]] : 0;
      if (!here) continue;
      if (here & blank) sheet.words[at] = 0;
      // The gaps between large cells stay empty.
      else if (!sheet.words[at]) continue;
      else if (here & up && (x + y) % period < thick) sheet.words[at] = LINE;
      else if (here & down && (x - y + period * sheet.height) % period < thick) sheet.words[at] = LINE;
    }
  }
}

/** For each pixel along one direction: first and last entry of the layer to look at, -1 where it shows none. */
export function reach(
  pixels: number,
  start: number,
  scale: number,
  layer: { first: number; step: number; count: number },
): { from: Int32Array; to: Int32Array } {
  const from = new Int32Array(pixels).fill(-1);
  const to = new Int32Array(pixels).fill(-1);
  for (let pixel = 0; pixel < pixels; pixel++) {
    const cell = start + pixel / scale;
    const next = start + (pixel + 1) / scale;
    // A thin line between large cells: the last pixel of a cell stays empty.
    if (scale >= GAP_FROM && Math.floor(next + 1e-6) > Math.floor(cell + 1e-6)) continue;
    const low = Math.floor((Math.floor(cell + 1e-6) - layer.first) / layer.step);
    const high = Math.ceil((Math.max(next - 1e-6, cell + 1e-6) - layer.first) / layer.step) - 1;
    if (low < 0 || low >= layer.count) continue;
    from[pixel] = low;
    to[pixel] = Math.min(layer.count - 1, Math.max(low, high));
  }
  return { from, to };
}

/** Paint one layer onto the sheet; `view` is in device pixels. Where cells share a pixel, the one furthest from `centre` wins. */
export function paint(sheet: Sheet, view: View, layer: Layer, colours: Uint32Array, centre: number): void {
  const columns = reach(sheet.width, view.x, view.sx, { first: layer.x, step: layer.stepX, count: layer.width });
  const rows = reach(sheet.height, view.y, view.sy, { first: layer.y, step: layer.stepY, count: layer.height });
  const single = columns.from.every((from, pixel) => columns.to[pixel] === from);
  for (let y = 0; y < sheet.height; y++) {
    const [top, bottom] = [rows.from[y], rows.to[y]];
    if (top < 0) continue;
    const line = sheet.words.subarray(y * sheet.width, (y + 1) * sheet.width);
    // Tall cells repeat the line above; copying beats looking up again.
    if (single && y > 0 && rows.from[y - 1] === top && rows.to[y - 1] === bottom) {
      line.set(sheet.words.subarray((y - 1) * sheet.width, y * sheet.width));
    } else paintLine(line, columns, layer, top, bottom, colours, centre);
  }
}

function paintLine(
  line: Uint32Array,
  { from, to }: { from: Int32Array; to: Int32Array },
  { codes, width }: Layer,
  top: number,
  bottom: number,
  colours: Uint32Array,
  centre: number,
): void {
  for (let x = 0; x < line.length; x++) {
    const left = from[x];
    if (left < 0) continue;
    const right = to[x];
    let best = codes[top * width + left];
    if (right > left || bottom > top) best = furthest(codes, width, top, bottom, left, right, centre);
    line[x] = colours[best];
  }
}

/** The code of the block furthest from the centre; missing only if all are. */
export function furthest(
  codes: Uint8Array,
  width: number,
  top: number,
  bottom: number,
  left: number,
  right: number,
  centre: number,
): number {
  let best = MISSING;
  let distance = -1;
  for (let row = top; row <= bottom; row++) {
    for (let at = row * width + left, end = row * width + right; at <= end; at++) {
      const code = codes[at];
      if (code === MISSING) continue;
      const away = code > centre ? code - centre : centre - code;
      if (away > distance) {
        distance = away;
        best = code;
      }
    }
  }
  return best;
}

/** How many cells at most share one pixel, over both directions, pooling in the kernel included. */
export function pooled(view: View, steps: readonly [number, number]): [number, number] {
  const along = (scale: number, step: number) => Math.max(1, Math.ceil(1 / scale / step - 1e-6)) * step;
  return [along(view.sy, steps[0]), along(view.sx, steps[1])];
}
