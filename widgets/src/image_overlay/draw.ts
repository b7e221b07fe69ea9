/** Patch values to transparent colours, and masks to outlines: no browser needed. */

import type { Numbers } from "../shared/bytes.ts";
import { mix, type Range, type Rgb, shareOf } from "../shared/colours.ts";

export interface Look {
  range: Range;
  ramp: readonly Rgb[];
  /** 0 to 1. */
  opacity: number;
  /** Small values let the image through; otherwise all patches cover it alike. */
  bySize: boolean;
}

const HUE_FROM = 0.6;

/** One RGBA pixel per patch. A missing value covers nothing. */
export function cover(values: Numbers, { range, ramp, opacity, bySize }: Look): Uint8ClampedArray<ArrayBuffer> {
  const pixels = new Uint8ClampedArray(values.length * 4);
  const largest = Math.max(Math.abs(range[0]), Math.abs(range[1])) || 1;
  values.forEach((value, at) => {
    if (Number.isNaN(value)) return;
    const size = Math.min(1, Math.abs(value) / largest);
    // A faint cover keeps its hue: the near-white of small values would lie on the image like fog.
    const shown = bySize ? Math.sign(value) * (HUE_FROM + (1 - HUE_FROM) * size) * largest : value;
    pixels.set([...mix(ramp, shareOf(shown, range)), Math.round(255 * opacity * (bySize ? size : 1))], at * 4);
  });
  return pixels;
}

/** RGB bytes to RGBA. */
export function opaque(rgb: ArrayLike<number>, count: number): Uint8ClampedArray<ArrayBuffer> {
  const pixels = new Uint8ClampedArray(count * 4);
  for (let at = 0; at < count; at++) {
    for (let channel = 0; channel < 3; channel++) pixels[at * 4 + channel] = rgb[at * 3 + channel];
    pixels[at * 4 + 3] = 255;
  }
  return pixels;
}

export type Segment = readonly [x0: number, y0: number, x1: number, y1: number];

/** The border between inside and outside of a mask, as straight runs in mask pixels. */
export function outline(mask: ArrayLike<number>, width: number, height: number): Segment[] {
  const at = (x: number, y: number) => (x >= 0 && y >= 0 && x < width && y < height && mask[y * width + x] ? 1 : 0);
  const across = runs(height + 1, width, (line, along) => at(along, line - 1) !== at(along, line));
  const down = runs(width + 1, height, (line, along) => at(line - 1, along) !== at(line, along));
  return [
    ...across.map(([y, from, to]) => [from, y, to, y] as const),
    ...down.map(([x, from, to]) => [x, from, x, to] as const),
  ];
}

function runs(
  lines: number,
  length: number,
  edge: (line: number, along: number) => boolean,
): [number, number, number][] {
  const found: [number, number, number][] = [];
  for (let line = 0; line < lines; line++)
    for (let along = 0, from = -1; along <= length; along++) {
      const on = along < length && edge(line, along);
      if (on && from < 0) from = along;
      if (!on && from >= 0) {
        found.push([line, from, along]);
        from = -1;
      }
    }
  return found;
}

/** Which share of a patch lies inside the mask. */
export function insideShare(
  mask: ArrayLike<number>,
  [height, width]: readonly [number, number],
  [y, x]: readonly [number, number],
  [rows, columns]: readonly [number, number],
): number {
  const [top, bottom] = [Math.floor((y * height) / rows), Math.max(Math.floor(((y + 1) * height) / rows), 1)];
  const [left, right] = [Math.floor((x * width) / columns), Math.max(Math.floor(((x + 1) * width) / columns), 1)];
  let inside = 0;
  for (let row = top; row < bottom; row++)
    for (let column = left; column < right; column++) inside += mask[row * width + column] ? 1 : 0;
  return inside / Math.max(1, (bottom - top) * (right - left));
}

/** Width of each of `count` panels so that they fit beside each other where that leaves them large enough. */
export function panelWidth(room: number, count: number, gap: number): number {
  const beside = Math.floor((room - gap * (count - 1)) / count);
  const least = Math.min(room, 168);
  if (beside >= least) return Math.min(beside, 340);
  const perLine = Math.max(1, Math.floor((room + gap) / (least + gap)));
  return Math.floor((room - gap * (perLine - 1)) / perLine);
}
