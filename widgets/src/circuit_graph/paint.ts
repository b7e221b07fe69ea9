/** Nodes and edges on a canvas: edges by sign and size, nodes by kind, so that no meaning hangs on colour alone. */

import type { Numbers } from "../shared/bytes.ts";
import { signColours } from "../shared/colours.ts";
import { cut, visible } from "../shared/text.ts";
import type { Theme } from "../shared/theme.ts";
import { type Drawing, type Net, rowNames, type Spot, swing } from "./draw.ts";

/** Kinds with a sign of their own, in the order of a legend; any other kind is a disc, as heads are. */
export const KINDS = ["embed", "query", "key", "value", "head", "mlp", "feature", "error", "logits"];

const BOX = 20;
const GLYPH = 4;
const WIDEST = 5;
/** Lines of about one width share a path: one stroke for hundreds of edges. */
const BUCKETS = 12;

export function drawEdges(
  brush: CanvasRenderingContext2D,
  { spots, width }: Drawing,
  net: Net & { values: Numbers },
  kept: readonly number[],
  strongest: number,
  theme: Theme,
): void {
  const at = new Map(spots.map((spot) => [spot.node, spot]));
  const bucketOf = (edge: number) => Math.ceil((Math.abs(net.values[edge]) / strongest) * BUCKETS);
  const buckets = new Map<string, number[]>();
  for (const edge of kept) {
    const key = `${String(bucketOf(edge)).padStart(2, "0")}${net.values[edge] < 0 ? "-" : "+"}`;
    const bucket = buckets.get(key);
    if (bucket) bucket.push(edge);
    else buckets.set(key, [edge]);
  }
  const { below, above } = signColours(theme.dark);
  brush.save();
  // The largest last, on top.
  for (const key of [...buckets.keys()].sort()) {
    const share = Number(key.slice(0, 2)) / BUCKETS;
    brush.beginPath();
    for (const edge of buckets.get(key)!)
      curve(brush, at.get(net.edges[2 * edge])!, at.get(net.edges[2 * edge + 1])!, width, edge);
    brush.strokeStyle = key.endsWith("-") ? below : above;
    brush.globalAlpha = 0.35 + 0.6 * share;
    brush.lineWidth = 0.6 + WIDEST * share;
    brush.stroke();
  }
  brush.restore();
}

/** From the top of one node to the bottom of another; what does not go up swings out. */
function curve(brush: CanvasRenderingContext2D, from: Spot, to: Spot, width: number, edge: number): void {
  const [start, end] = [from.y - from.tall / 2, to.y + to.tall / 2];
  const lift = Math.max(14, Math.abs(start - end) * 0.4);
  const aside = swing(to.x - from.x, end - start, from.x, width, edge);
  brush.moveTo(from.x, start);
  brush.bezierCurveTo(from.x + aside, start - lift, to.x + aside, end + lift, to.x, end);
}

export interface Words {
  nodes: readonly string[];
  kinds: readonly string[] | undefined;
  marks: readonly string[] | undefined;
}

/** The same drawing with a label and a size for every node, as this font measures them. */
export function labelled(brush: CanvasRenderingContext2D, drawing: Drawing, words: Words, theme: Theme): Drawing {
  brush.font = `11px ${theme.font}`;
  const wide = (name: string) => brush.measureText(name).width;
  const spots = drawing.rows.flatMap(({ y }) => {
    const row = drawing.spots.filter((spot) => spot.y === y);
    const room = row[0].room;
    const full = row.map(({ node }) => visible(words.nodes[node]));
    const names = rowNames(full, (name) => wide(name) <= room - 28);
    // One row, one way to write: beside the sign in a box, under it, or not at all.
    const boxed = names.map((name) => fitted(name, room - 28, wide));
    const under = names.map((name) => fitted(name, room - 6, wide));
    const how = boxed.every(Boolean) ? "boxed" : under.every(Boolean) ? "under" : "bare";
    return row.map((spot, at) => {
      const label = how === "boxed" ? boxed[at] : how === "under" ? under[at] : "";
      const width = how === "boxed" ? wide(label) + 26 : 2 * GLYPH + 6;
      return { ...spot, label, under: how === "under", width, tall: how === "boxed" ? BOX : 2 * GLYPH + 6 };
    });
  });
  return { ...drawing, spots };
}

/** All nodes, or some. */
export function drawNodes(
  brush: CanvasRenderingContext2D,
  { spots }: Drawing,
  words: Words,
  theme: Theme,
  some?: ReadonlySet<number>,
): void {
  brush.font = `11px ${theme.font}`;
  brush.textBaseline = "middle";
  for (const spot of spots) if (!some || some.has(spot.node)) drawNode(brush, spot, words.kinds?.[spot.node], theme);
}

function drawNode(brush: CanvasRenderingContext2D, spot: Spot, kind = "", theme: Theme): void {
  const { x, y, label, under, width } = spot;
  const boxed = label !== "" && !under;
  brush.fillStyle = theme.ground;
  brush.strokeStyle = theme.line;
  brush.lineWidth = 1;
  brush.beginPath();
  if (boxed) brush.roundRect(x - width / 2, y - BOX / 2, width, BOX, 5);
  else brush.arc(x, y, width / 2, 0, 2 * Math.PI);
  brush.fill();
  if (boxed) brush.stroke();
  drawKind(brush, kind, boxed ? x - width / 2 + 10 : x, y, theme);
  if (!label) return;
  brush.textAlign = boxed ? "left" : "center";
  const [left, top] = boxed ? [x - width / 2 + 18, y + 0.5] : [x, y + GLYPH + 9];
  // A rim of the ground keeps the letters apart from lines behind them.
  brush.strokeStyle = theme.ground;
  brush.lineWidth = 3;
  brush.lineJoin = "round";
  if (under) brush.strokeText(label, left, top);
  brush.fillStyle = theme.ink;
  brush.fillText(label, left, top);
}

/** As much of the end of a name as fits: beginnings are alike. Less than three letters of a longer name say nothing. */
function fitted(name: string, room: number, wide: (words: string) => number): string {
  if (wide(name) <= room) return name;
  const letters = [...cut(name, 60)];
  for (let left = letters.length - 1; left >= 3; left--) {
    const words = `…${letters.slice(-left).join("")}`;
    if (wide(words) <= room) return words;
  }
  return "";
}

/** A sign per kind: told apart by shape. */
export function drawKind(brush: CanvasRenderingContext2D, kind: string, x: number, y: number, theme: Theme): void {
  const r = GLYPH;
  const corners: Record<string, [number, number][]> = {
    embed: [
      [-r, -r],
      [r, -r],
      [r, r],
      [-r, r],
    ],
    mlp: [
      [0, -r - 1],
      [r + 1, 0],
      [0, r + 1],
      [-r - 1, 0],
    ],
    // The inputs of a head: to the right, to the left, down.
    query: [
      [-r + 1, -r],
      [r, 0],
      [-r + 1, r],
    ],
    key: [
      [r - 1, -r],
      [-r, 0],
      [r - 1, r],
    ],
    value: [
      [-r, -r + 1],
      [r, -r + 1],
      [0, r],
    ],
    logits: [
      [0, -r - 1],
      [r + 1, r],
      [-r - 1, r],
    ],
  };
  brush.beginPath();
  if (kind === "error") {
    brush.moveTo(x - r, y - r);
    brush.lineTo(x + r, y + r);
    brush.moveTo(x - r, y + r);
    brush.lineTo(x + r, y - r);
  } else if (corners[kind]) {
    for (const [dx, dy] of corners[kind]) brush.lineTo(x + dx, y + dy);
    brush.closePath();
  } else brush.arc(x, y, r, 0, 2 * Math.PI);
  brush.strokeStyle = brush.fillStyle = theme.muted;
  brush.lineWidth = 1.5;
  // Features are rings, heads are discs.
  if (kind !== "feature" && kind !== "error") brush.fill();
  brush.stroke();
}

/** Blocks or layers at the left, once for all rows of one. */
export function drawLayers(
  brush: CanvasRenderingContext2D,
  { rows, spots }: Drawing,
  words: Words,
  theme: Theme,
): void {
  if (!words.marks) return;
  brush.font = `11px ${theme.font}`;
  brush.textBaseline = "middle";
  brush.textAlign = "right";
  brush.fillStyle = theme.muted;
  let last = "";
  for (const { y } of rows) {
    const mark = words.marks[spots.find((spot) => spot.y === y)!.node];
    if (mark !== last) brush.fillText(mark, 22, y);
    last = mark;
  }
}

/** A frame around pointed and pinned nodes: white inside black, to show on any ground. */
export function outline(brush: CanvasRenderingContext2D, spot: Spot, pinned: boolean): void {
  const [width, tall] = [spot.width + 4, spot.tall + 2];
  for (const [colour, line] of [
    [pinned ? "#000" : "#fff", 4],
    [pinned ? "#fff" : "#000", 1.5],
  ] as const) {
    brush.strokeStyle = colour;
    brush.lineWidth = line;
    brush.beginPath();
    brush.roundRect(spot.x - width / 2, spot.y - tall / 2, width, tall, 6);
    brush.stroke();
  }
}
