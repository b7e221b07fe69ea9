import { expect, it } from "vitest";
import { inkOn, mix, rampFor } from "../shared/colours.ts";
import { lines, paints } from "./draw.ts";

it("colours tokens by sign and leaves missing ones bare", () => {
  const ramp = rampFor([-1, 1], false, true);
  const [low, zero, high, none] = paints(Float32Array.of(-1, 0, 1, Number.NaN), [-1, 1], ramp);
  expect([low?.ground, high?.ground]).toEqual([ramp[0], ramp.at(-1)]);
  expect(zero?.ground).toEqual([247, 247, 247]);
  expect(none).toBeUndefined();
});

it("starts unsigned values at the ground", () => {
  expect(mix(rampFor([0, 1], false, true), 0)).toEqual([247, 247, 247]);
  expect(mix(rampFor([0, 1], true, true), 0)).toEqual([33, 35, 39]);
});

it("writes in an ink that reads on every colour", () => {
  const light = ([r, g, b]: readonly number[]) =>
    [r, g, b]
      .map((c) => (c / 255 <= 0.04 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4))
      .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  for (const dark of [false, true])
    for (let share = 0; share <= 1; share += 0.05) {
      const ground = mix(rampFor([-1, 1], dark, true), share);
      const ink = inkOn(ground) === "#000" ? 0 : 1;
      const [a, b] = [light(ground), ink].sort((x, y) => y - x);
      expect((a + 0.05) / (b + 0.05)).toBeGreaterThan(4.4);
    }
});

it("breaks lines where the room ends and where the text does", () => {
  expect(lines([30, 30, 30, 30], 70, [false, false, true, false])).toEqual([
    [0, 0],
    [30, 0],
    [0, 1],
    [0, 2],
  ]);
});
