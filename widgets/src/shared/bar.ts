/** The colour bar: what the colours mean, and where they stop. */

import { css, mix, type Range, type Rgb } from "./colours.ts";
import { short } from "./numbers.ts";
import type { Theme } from "./theme.ts";

export interface BarSpec {
  ramp: readonly Rgb[];
  range: Range;
  /** Smallest and largest value there is: the bar says when it clips them. */
  data: Range;
}

/** Words at the two ends and, if there is room, at zero. */
export function barWords({ range, data }: BarSpec): [string, string] {
  return [(data[0] < range[0] ? "≤ " : "") + short(range[0]), (data[1] > range[1] ? "≥ " : "") + short(range[1])];
}

/** An upright bar with its numbers to the right. */
export function drawBar(
  brush: CanvasRenderingContext2D,
  box: { x: number; y: number; width: number; height: number },
  spec: BarSpec,
  theme: Theme,
): void {
  const { x, y, width, height } = box;
  for (let line = 0; line < height; line++) {
    brush.fillStyle = css(mix(spec.ramp, 1 - (line + 0.5) / height));
    brush.fillRect(x, y + line, width, 1);
  }
  brush.strokeStyle = theme.line;
  brush.lineWidth = 1;
  brush.strokeRect(x - 0.5, y - 0.5, width + 1, height + 1);
  const [low, high] = barWords(spec);
  const label = (words: string, place: number, baseline: CanvasTextBaseline) => {
    brush.textBaseline = baseline;
    brush.fillText(words, x + width + 5, place);
  };
  brush.fillStyle = theme.ink;
  brush.font = `11px ${theme.font}`;
  brush.textAlign = "left";
  label(high, y - 1, "top");
  label(low, y + height + 1, "bottom");
  if (height >= 44) label(short((spec.range[0] + spec.range[1]) / 2), y + height / 2, "middle");
}
