import { expect, it } from "vitest";
import { rampFor } from "../shared/colours.ts";
import { cover, insideShare, opaque, outline, panelWidth } from "./draw.ts";

const look = { range: [-2, 2] as const, ramp: rampFor([-2, 2], false, true), opacity: 0.5, bySize: true };

it("lets the image through where values are small or missing", () => {
  const alpha = (bySize: boolean) =>
    [...cover(Float32Array.of(0, 1, -2, Number.NaN), { ...look, bySize })].filter((_, at) => at % 4 === 3);
  expect(alpha(true)).toEqual([0, 64, 128, 0]);
  expect(alpha(false)).toEqual([128, 128, 128, 0]);
});

it("outlines a mask with as few lines as it has sides", () => {
  const square = [0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0];
  expect(outline(square, 4, 4)).toEqual([
    [1, 1, 3, 1],
    [1, 3, 3, 3],
    [1, 1, 1, 3],
    [3, 1, 3, 3],
  ]);
});

it("outlines a mask that touches the border", () => {
  expect(outline([1], 1, 1)).toHaveLength(4);
});

it("measures how much of a patch is inside", () => {
  expect(insideShare([1, 1, 0, 0, 1, 1, 0, 0], [2, 4], [0, 0], [1, 2])).toBe(1);
  expect(insideShare([1, 0, 0, 0, 1, 1, 0, 0], [2, 4], [0, 0], [1, 2])).toBe(0.75);
});

it("makes bytes opaque", () => {
  expect([...opaque([1, 2, 3, 4, 5, 6], 2)]).toEqual([1, 2, 3, 255, 4, 5, 6, 255]);
});

it("puts panels beside each other while they stay large enough", () => {
  expect(panelWidth(700, 2, 12)).toBe(340);
  expect(panelWidth(700, 5, 12)).toBe(225);
  expect(panelWidth(150, 2, 12)).toBe(150);
});
