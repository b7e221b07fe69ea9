/** The page of a feature as one picture, for the clipboard. */

import { cover, opaque } from "../image_overlay/draw.ts";
import { drawPanel } from "../image_overlay/panel.ts";
import { css, rampFor, signColours } from "../shared/colours.ts";
import { sized } from "../shared/dom.ts";
import { short } from "../shared/numbers.ts";
import { cut, visible } from "../shared/text.ts";
import type { Theme } from "../shared/theme.ts";
import { lines, paints } from "../token_strip/draw.ts";
import { rangeOf } from "./contexts.ts";
import { drawHistogram } from "./page.ts";
import { type Context, precisely, type Sheet } from "./sheet.ts";

const [WIDTH, PAD, LINE, PANEL] = [800, 12, 22, 150];
const CONTEXTS = 12;

export function picture(title: string, sheet: Sheet, theme: Theme): HTMLCanvasElement {
  const whole = document.createElement("canvas");
  const contexts = (sheet.contexts ?? []).slice(0, CONTEXTS);
  const range = rangeOf(contexts);
  // Measured first: the height is known only when every line has its place.
  let [brush, draw] = [sized(whole, WIDTH, PAD, 2), false];
  const ink = (words: string, x: number, y: number, colour = theme.ink, weight = "") => {
    brush.font = `${weight} 13px ${theme.font}`.trim();
    brush.fillStyle = colour;
    if (draw) brush.fillText(words, x, y);
  };
  const all = (): number => {
    brush.textBaseline = "middle";
    let y = PAD + LINE / 2;
    ink(`${title} · feature ${sheet.feature}`, PAD, y, theme.ink, "600");
    y += LINE;
    const figures = sheet.figures.map(
      ([name, value]) => `${name} ${typeof value === "number" ? precisely(value) : value}`,
    );
    ink(cut(figures.join("  ·  "), 120), PAD, y, theme.muted);
    y = Math.max(histogram(y + LINE), logits(y + LINE)) + LINE / 2;
    for (const context of contexts) y = context.image ? image(context, y) : text(context, y);
    return y + PAD;
  };
  const histogram = (y: number): number => {
    if (!sheet.histogram) return y;
    const small = document.createElement("canvas");
    drawHistogram(small, sheet.histogram.counts, theme);
    const [width, height] = [Number.parseFloat(small.style.width), Number.parseFloat(small.style.height)];
    if (draw) brush.drawImage(small, PAD, y, width, height);
    ink(
      `${short(sheet.histogram.edges[0])} to ${short(sheet.histogram.edges.at(-1)!)}, log counts`,
      PAD,
      y + height + LINE / 2,
      theme.muted,
    );
    return y + height + LINE;
  };
  const logits = (top: number): number => {
    const { below, above } = signColours(theme.dark);
    let y = top;
    for (const [column, name] of (["promoted", "suppressed"] as const).entries()) {
      const x = 300 + column * 245;
      ink(name, x, top + LINE / 2, theme.muted);
      (sheet[name]?.words ?? []).slice(0, 8).forEach((word, at) => {
        const value = sheet[name]!.values[at];
        ink(cut(visible(word), 20), x, top + LINE * (at + 1.5), theme.ink);
        ink(short(value), x + 185, top + LINE * (at + 1.5), value < 0 ? below : above);
        y = Math.max(y, top + LINE * (at + 2));
      });
    }
    return y;
  };
  const image = (context: Context, y: number): number => {
    const { pixels, width, height } = context.image!;
    const [ground, panel] = [document.createElement("canvas"), document.createElement("canvas")];
    sized(ground, width, height, 1).putImageData(new ImageData(opaque(pixels, width * height), width, height), 0, 0);
    const laid = cover(context.values, { range, ramp: rampFor(range, false, true), opacity: 0.7, bySize: true });
    drawPanel(panel, PANEL, {
      image: ground,
      grid: context.grid!,
      cover: laid,
      edges: [],
      maskWidth: 1,
      cursor: undefined,
      pins: [],
    });
    const tall = Number.parseFloat(panel.style.height);
    if (draw) brush.drawImage(panel, PAD, y, PANEL, tall);
    ink(headOf(context), PAD + PANEL + 12, y + LINE / 2, theme.muted);
    return y + tall + 8;
  };
  const text = (context: Context, top: number): number => {
    ink(headOf(context), PAD, top + LINE / 2, theme.muted);
    brush.font = `13px ${theme.font}`;
    const words = (context.tokens ?? []).map(visible);
    const widths = words.map((word) => brush.measureText(word).width + 5);
    const places = lines(
      widths,
      WIDTH - 2 * PAD,
      words.map((word) => word.includes("↵")),
    );
    const colours = paints(context.values, range, rampFor(range, theme.dark, true));
    words.forEach((word, at) => {
      const [x, y] = [PAD + places[at][0], top + LINE * (1 + places[at][1])];
      const paint = context.values[at] === 0 ? undefined : colours[at];
      brush.fillStyle = paint ? css(paint.ground) : "transparent";
      if (draw && paint) brush.fillRect(x, y, widths[at] - 1, LINE - 3);
      ink(word, x + 2, y + LINE / 2 - 1, paint?.ink ?? theme.ink);
    });
    return top + LINE * (2.3 + (places.at(-1)?.[1] ?? 0));
  };
  const height = all();
  brush = sized(whole, WIDTH, Math.ceil(height), 2);
  brush.fillStyle = theme.dark ? "#111" : "#fff";
  brush.fillRect(0, 0, WIDTH, height);
  draw = true;
  all();
  return whole;
}

function headOf({ band, example, value }: Context): string {
  return [band, example && `example ${example}`, value === undefined ? "" : short(value)].filter(Boolean).join(" · ");
}
