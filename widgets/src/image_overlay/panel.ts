/** One picture: the image, a map over it, the outline of the truth, cursor and pins. */

import { sized } from "../shared/dom.ts";
import type { Segment } from "./draw.ts";

export interface Panel {
  image: HTMLCanvasElement;
  grid: readonly [rows: number, columns: number];
  cover: Uint8ClampedArray<ArrayBuffer> | undefined;
  edges: readonly Segment[];
  maskWidth: number;
  cursor: readonly [number, number] | undefined;
  pins: readonly (readonly [number, number])[];
}

export function drawPanel(canvas: HTMLCanvasElement, width: number, panel: Panel): void {
  const height = Math.round((width * panel.image.height) / panel.image.width);
  const brush = sized(canvas, width, height, devicePixelRatio || 1);
  // Enlarged pixels are data and stay crisp; only a reduced picture is smoothed.
  brush.imageSmoothingEnabled = width < panel.image.width;
  brush.drawImage(panel.image, 0, 0, width, height);
  brush.imageSmoothingEnabled = false;
  if (panel.cover) brush.drawImage(patches(panel.cover, panel.grid), 0, 0, width, height);
  drawEdges(brush, panel.edges, width / panel.maskWidth);
  const size = { x: width / panel.grid[1], y: height / panel.grid[0] };
  for (const pin of panel.pins) mark(brush, pin, size, "#000", "#fff");
  if (panel.cursor) mark(brush, panel.cursor, size, "#fff", "#000");
}

function patches(cover: Uint8ClampedArray<ArrayBuffer>, [rows, columns]: readonly [number, number]): HTMLCanvasElement {
  const small = document.createElement("canvas");
  sized(small, columns, rows, 1).putImageData(new ImageData(cover, columns, rows), 0, 0);
  return small;
}

function drawEdges(brush: CanvasRenderingContext2D, edges: readonly Segment[], scale: number): void {
  brush.beginPath();
  for (const [x0, y0, x1, y1] of edges) {
    brush.moveTo(x0 * scale, y0 * scale);
    brush.lineTo(x1 * scale, y1 * scale);
  }
  brush.lineCap = "square";
  stroke(brush, "rgba(0,0,0,.85)", 3);
  stroke(brush, "#fff", 1.25);
}

/** White inside black or the reverse, so that it shows on any picture. */
function mark(
  brush: CanvasRenderingContext2D,
  [y, x]: readonly [number, number],
  size: { x: number; y: number },
  outer: string,
  inner: string,
): void {
  brush.beginPath();
  brush.rect(x * size.x + 1, y * size.y + 1, Math.max(3, size.x - 2), Math.max(3, size.y - 2));
  stroke(brush, outer, 3.5);
  stroke(brush, inner, 1.5);
}

function stroke(brush: CanvasRenderingContext2D, colour: string, width: number): void {
  brush.strokeStyle = colour;
  brush.lineWidth = width;
  brush.stroke();
}
