/** The strips as one picture, for the clipboard. */

import { css } from "../shared/colours.ts";
import { sized } from "../shared/dom.ts";
import { visible } from "../shared/text.ts";
import type { Theme } from "../shared/theme.ts";
import { lines, type Paint } from "./draw.ts";

const LINE = 24;
const WIDTH = 760;
const PAD = 8;

export interface Strip {
  name: string;
  paints: readonly (Paint | undefined)[];
}

export function picture(
  title: string,
  tokens: readonly string[],
  strips: readonly Strip[],
  theme: Theme,
): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  const ruler = canvas.getContext("2d")!;
  ruler.font = `13px ${theme.font}`;
  const words = tokens.map(visible);
  const widths = words.map((word) => ruler.measureText(word).width + 6);
  const places = lines(
    widths,
    WIDTH - 2 * PAD,
    tokens.map((token) => token.includes("\n")),
  );
  const tall = (places.at(-1)?.[1] ?? 0) + 1;
  const each = tall * LINE + LINE;
  const brush = sized(canvas, WIDTH, PAD * 2 + LINE + strips.length * each, 2);
  brush.fillStyle = theme.dark ? "#111" : "#fff";
  brush.fillRect(0, 0, WIDTH, canvas.height);
  brush.textBaseline = "middle";
  const write = (text: string, x: number, y: number, ink: string, weight = "") => {
    brush.font = `${weight} 13px ${theme.font}`.trim();
    brush.fillStyle = ink;
    brush.fillText(text, x, y);
  };
  write(title, PAD, PAD + LINE / 2, theme.ink, "600");
  strips.forEach((strip, row) => {
    const top = PAD + LINE + row * each;
    write(strip.name, PAD, top + LINE / 2, theme.muted);
    words.forEach((word, at) => {
      const [x, y] = [PAD + places[at][0], top + LINE + places[at][1] * LINE];
      const paint = strip.paints[at];
      if (paint) {
        brush.fillStyle = css(paint.ground);
        brush.fillRect(x, y, widths[at] - 1, LINE - 3);
      }
      write(word, x + 3, y + LINE / 2 - 1, paint?.ink ?? theme.ink);
    });
  });
  return canvas;
}
