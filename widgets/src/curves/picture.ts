/** The curves as one picture for the clipboard: with the title, and a legend that says which line is which. */

import { cut, visible } from "../shared/text.ts";
import type { Theme } from "../shared/theme.ts";
import { drawSample, type Pen } from "./paint.ts";

const LINE = 18;
const PAD = 8;

export function picture(
  title: string,
  layers: readonly HTMLCanvasElement[],
  rows: readonly { name: string; pen: Pen }[],
  caption: string,
  theme: Theme,
): HTMLCanvasElement {
  const width = Number.parseFloat(layers[0].style.width);
  const height = Number.parseFloat(layers[0].style.height);
  const density = layers[0].width / width;
  const whole = document.createElement("canvas");
  const lines = rows.length + (caption ? 1 : 0);
  whole.width = layers[0].width + Math.round(2 * PAD * density);
  whole.height = Math.round((height + (lines + 1) * LINE + 3 * PAD) * density);
  const brush = whole.getContext("2d")!;
  brush.scale(density, density);
  brush.fillStyle = theme.dark ? "#111" : "#fff";
  brush.fillRect(0, 0, whole.width, whole.height);
  brush.textBaseline = "middle";
  const write = (words: string, x: number, y: number, ink: string, weight = "") => {
    brush.font = `${weight} 12px ${theme.font}`.trim();
    brush.fillStyle = ink;
    brush.fillText(words, x, y, width - x);
  };
  write(visible(title || " "), PAD, PAD + LINE / 2, theme.ink, "600");
  for (const layer of layers) brush.drawImage(layer, PAD, PAD + LINE, width, height);
  const top = PAD + LINE + height + PAD;
  rows.forEach(({ name, pen }, row) => {
    const y = top + (row + 0.5) * LINE;
    drawSample(brush, PAD, y, 26, pen);
    write(cut(visible(name), 90), PAD + 34, y, theme.ink);
  });
  if (caption) write(caption, PAD, top + (rows.length + 0.5) * LINE, theme.muted);
  return whole;
}
