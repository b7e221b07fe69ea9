/** A flat colour bar under tokens and images, with its ends in words. */

import { type BarSpec, barWords } from "./bar.ts";
import { css } from "./colours.ts";
import { make } from "./dom.ts";

export function legend(spec: BarSpec, unit: string): HTMLElement {
  const [low, high] = barWords(spec);
  const bar = make("span", { class: "act-ramp", "aria-hidden": "true" });
  bar.style.background = `linear-gradient(to right, ${spec.ramp.map(css).join(", ")})`;
  const words = make("span", { class: "act-legend" }, low, bar, high);
  if (unit) words.append(` ${unit}`);
  return words;
}
