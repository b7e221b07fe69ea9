/** Ground, ridges, names of spikes and marks onto a canvas. */

import { ticks } from "../heatmap/view.ts";
import { signColours } from "../shared/colours.ts";
import { short } from "../shared/numbers.ts";
import { type Scale, shareAt, ticksFor } from "../shared/scale.ts";
import { cut, visible } from "../shared/text.ts";
import type { Theme } from "../shared/theme.ts";
import { type Camera, groundOf, type Land, type Peak, type Projection, placed, ridges } from "./draw.ts";

export interface Axis {
  name: string;
  count: number;
  names?: readonly string[] | undefined;
}

type Brush = CanvasRenderingContext2D;

/** Every ridge hides what lies behind it; its upper edge says sign and size. */
export function drawLand(
  brush: Brush,
  land: Land,
  heights: Float32Array,
  tints: Uint8Array,
  camera: Camera,
  to: Projection,
  theme: Theme,
): void {
  const { lines, blocks } = ridges(land, camera);
  const inks = inksOf(theme);
  brush.lineJoin = "round";
  for (const line of lines) {
    const ridge = blocks(line).map((block) => {
      const [u, v] = groundOf(land, block);
      const [x, bottom] = to.at(u, v, 0);
      return { x, bottom, y: to.at(u, v, heights[block])[1], height: heights[block], tint: tints[block] };
    });
    for (const stretch of unbroken(ridge)) drawStretch(brush, stretch, inks, theme.ground);
  }
  brush.globalAlpha = 1;
}

interface Stand {
  x: number;
  y: number;
  bottom: number;
  height: number;
  tint: number;
}

function unbroken(ridge: readonly Stand[]): Stand[][] {
  const found: Stand[][] = [];
  let open: Stand[] | undefined;
  for (const stand of ridge) {
    if (Number.isNaN(stand.height)) open = undefined;
    else if (open) open.push(stand);
    else {
      open = [stand];
      found.push(open);
    }
  }
  return found;
}

function drawStretch(brush: Brush, stretch: readonly Stand[], inks: readonly Ink[], ground: string): void {
  // A ridge of one block has no width: it is a line.
  const last = stretch.length - 1;
  brush.beginPath();
  brush.moveTo(stretch[0].x, stretch[0].bottom);
  for (const { x, y } of stretch) brush.lineTo(x, y);
  brush.lineTo(stretch[last].x, stretch[last].bottom);
  brush.closePath();
  brush.globalAlpha = 0.94;
  brush.fillStyle = ground;
  brush.fill();
  const tint = (at: number) => (stretch[at].height >= stretch[at + 1].height ? stretch[at].tint : stretch[at + 1].tint);
  const pieces = last ? Array.from({ length: last }, (_, at) => tint(at)) : [stretch[0].tint];
  for (const used of new Set(pieces)) {
    brush.beginPath();
    pieces.forEach((piece, at) => {
      if (piece !== used) return;
      brush.moveTo(stretch[at].x, last ? stretch[at].y : stretch[at].bottom);
      brush.lineTo(stretch[last ? at + 1 : at].x, stretch[last ? at + 1 : at].y);
    });
    brush.strokeStyle = inks[used].colour;
    brush.globalAlpha = inks[used].alpha;
    brush.lineWidth = inks[used].width;
    brush.stroke();
  }
}

interface Ink {
  colour: string;
  alpha: number;
  width: number;
}

function inksOf(theme: Theme): Ink[] {
  const { below, above } = signColours(theme.dark);
  const levels = (colour: string) => [0.55, 0.85, 1, 1].map((alpha, at) => ({ colour, alpha, width: at ? 1.7 : 0.9 }));
  return [{ colour: "#808080", alpha: 1, width: 1.4 }, ...levels(below), ...levels(above)];
}

/** The outline of the ground, and the scale of heights at its leftmost corner. */
export function drawGround(brush: Brush, to: Projection, scale: Scale, unit: string, theme: Theme): void {
  brush.strokeStyle = theme.line;
  brush.lineWidth = 1;
  brush.beginPath();
  for (const [u, v] of [[0, 0], [1, 0], [1, 1], [0, 1]]) brush.lineTo(...to.at(u, v, 0)); // biome-ignore format: corners
  brush.closePath();
  brush.stroke();
  const corners = [[0, 0], [1, 0], [0, 1], [1, 1]]; // biome-ignore format: corners
  const [u, v] = corners.reduce((best, one) =>
    to.at(one[0], one[1], 0)[0] < to.at(best[0], best[1], 0)[0] ? one : best,
  );
  const [[x, low], [, high]] = [to.at(u, v, 0), to.at(u, v, 1)];
  // Seen from straight above, heights have no length.
  if (low - high < 24) return;
  brush.beginPath();
  brush.moveTo(x, low);
  brush.lineTo(x, high);
  brush.stroke();
  brush.textAlign = "right";
  brush.textBaseline = "middle";
  for (const tick of ticksFor(scale, Math.min(1, 22 / (low - high)))) {
    const y = low + (high - low) * shareAt(scale, tick);
    brush.beginPath();
    brush.moveTo(x - 4, y);
    brush.lineTo(x, y);
    brush.stroke();
    brush.fillStyle = theme.ink;
    // The ground says 0 itself, where other numbers begin.
    if (tick > 0) brush.fillText(short(tick), x - 6, y, 46);
  }
  if (!unit) return;
  brush.fillStyle = theme.muted;
  brush.textAlign = "left";
  brush.fillText(cut(unit, 40), Math.max(2, x - 40), high - 12);
}

/** Numbers and names along the two edges of the ground that are nearest to the reader. */
export function drawEdges(
  brush: Brush,
  to: Projection,
  [rows, columns]: readonly [Axis, Axis],
  width: number,
  theme: Theme,
): void {
  const front = to.depth(0.5, 0) <= to.depth(0.5, 1) ? 0 : 1;
  const side = to.depth(0, 0.5) <= to.depth(1, 0.5) ? 0 : 1;
  drawEdge(brush, columns, (share, out) => to.at(share, front + out * (front ? 1 : -1), 0), width, theme);
  drawEdge(brush, rows, (share, out) => to.at(side + out * (side ? 1 : -1), share, 0), width, theme);
}

function drawEdge(
  brush: Brush,
  axis: Axis,
  at: (share: number, out: number) => [number, number],
  width: number,
  theme: Theme,
): void {
  const [start, end, middle, outer] = [at(0, 0), at(1, 0), at(0.5, 0), at(0.5, 0.2)];
  const length = Math.hypot(end[0] - start[0], end[1] - start[1]);
  const flat = Math.abs(end[0] - start[0]) > 2 * Math.abs(end[1] - start[1]);
  const [dx, dy] = unitOf(outer[0] - middle[0], outer[1] - middle[1]);
  brush.textAlign = Math.abs(dx) < 0.35 ? "center" : dx < 0 ? "right" : "left";
  brush.textBaseline = "middle";
  const widest = axis.names ? 60 : brush.measureText(String(axis.count)).width + 10;
  brush.fillStyle = theme.ink;
  brush.strokeStyle = theme.line;
  let reach = 0;
  for (const index of ticks(
    0,
    axis.count,
    Math.max(1e-6, length / axis.count),
    flat ? widest : Math.max(16, widest / 2),
  )) {
    const [x, y] = at((index + 0.5) / axis.count, 0);
    brush.beginPath();
    brush.moveTo(x, y);
    brush.lineTo(x + 4 * dx, y + 4 * dy);
    brush.stroke();
    const words = cut(visible(axis.names?.[index] ?? String(index)), 10);
    reach = Math.max(reach, brush.measureText(words).width);
    brush.fillText(words, x + 9 * dx, y + 11 * dy, 64);
  }
  // Beside its labels, or under them.
  const away = Math.abs(dx) < 0.35 ? 28 : 20 + Math.min(64, reach);
  brush.fillStyle = theme.muted;
  brush.textAlign = "center";
  const half = brush.measureText(axis.name).width / 2;
  const x = middle[0] + away * dx + half * Math.sign(dx) * (Math.abs(dx) < 0.35 ? 0 : 1);
  brush.fillText(axis.name, Math.min(Math.max(x, half + 2), width - half - 2), middle[1] + Math.max(away, 28) * dy);
}

function unitOf(x: number, y: number): [number, number] {
  const size = Math.hypot(x, y) || 1;
  return [x / size, y / size];
}

/** The highest spikes by name, each with a line down to its top. */
export function drawNames(
  brush: Brush,
  peaks: readonly (Peak & { words: string })[],
  to: Projection,
  width: number,
  theme: Theme,
): void {
  const tops = peaks.map(({ u, v, height, words }) => {
    const [x, y] = to.at(u, v, height);
    return { x, y, width: brush.measureText(words).width };
  });
  brush.textAlign = "center";
  brush.textBaseline = "middle";
  brush.lineJoin = "round";
  placed(tops, width).forEach(({ x, y }, at) => {
    brush.strokeStyle = theme.muted;
    brush.lineWidth = 1;
    brush.beginPath();
    brush.moveTo(tops[at].x, tops[at].y);
    brush.lineTo(x, y + (y < tops[at].y ? 6 : -6));
    brush.stroke();
    // A rim of the ground keeps the letters apart from lines behind them.
    brush.strokeStyle = theme.ground;
    brush.lineWidth = 3;
    brush.strokeText(peaks[at].words, x, y);
    brush.fillStyle = theme.ink;
    brush.fillText(peaks[at].words, x, y);
  });
}

/** A place that is pointed at or pinned, with lines to the edges where it can be read. */
export function drawSpot(
  brush: Brush,
  [u, v]: readonly [number, number],
  height: number,
  to: Projection,
  pinned: boolean,
  theme: Theme,
): void {
  const [x, bottom] = to.at(u, v, 0);
  const y = to.at(u, v, Number.isNaN(height) ? 0 : height)[1];
  const front = to.depth(0.5, 0) <= to.depth(0.5, 1) ? 0 : 1;
  const side = to.depth(0, 0.5) <= to.depth(1, 0.5) ? 0 : 1;
  brush.strokeStyle = theme.ink;
  brush.lineWidth = 1;
  brush.setLineDash([3, 3]);
  brush.beginPath();
  if (!pinned) {
    brush.moveTo(...to.at(u, front, 0));
    brush.lineTo(x, bottom);
    brush.lineTo(...to.at(side, v, 0));
  }
  brush.moveTo(x, bottom);
  brush.lineTo(x, y);
  brush.stroke();
  brush.setLineDash([]);
  for (const [ink, width] of [
    [pinned ? "#000" : "#fff", 3.5],
    [pinned ? "#fff" : "#000", 1.5],
  ] as const) {
    brush.strokeStyle = ink;
    brush.lineWidth = width;
    brush.beginPath();
    brush.arc(x, y, 4.2, 0, 2 * Math.PI);
    brush.stroke();
  }
}
