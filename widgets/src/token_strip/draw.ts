/** Tokens to colours and places: no browser needed. */

import type { Numbers } from "../shared/bytes.ts";
import { inkOn, mix, type Range, type Rgb, shareOf } from "../shared/colours.ts";

export interface Paint {
  ground: Rgb;
  ink: "#000" | "#fff";
}

/** Colours of one map's tokens; a missing value has none. */
export function paints(values: Numbers, range: Range, ramp: readonly Rgb[]): (Paint | undefined)[] {
  return Array.from(values, (value) => {
    if (Number.isNaN(value)) return undefined;
    const ground = mix(ramp, shareOf(value, range));
    return { ground, ink: inkOn(ground) };
  });
}

/** Where each token stands when set in lines of this width: `[x, line]`. Tokens with a line break end their line. */
export function lines(widths: readonly number[], room: number, breaks: readonly boolean[]): [number, number][] {
  const places: [number, number][] = [];
  let [x, line] = [0, 0];
  widths.forEach((width, at) => {
    if (x > 0 && x + width > room) [x, line] = [0, line + 1];
    places.push([x, line]);
    x += width;
    if (breaks[at]) [x, line] = [0, line + 1];
  });
  return places;
}
