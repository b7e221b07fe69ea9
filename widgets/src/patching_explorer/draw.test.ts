import { describe, expect, it } from "vitest";
import { agreement, agreementWords, frameOf, nearest, type Pair, placed } from "./draw.ts";

describe("agreement", () => {
  it("by hand", () => {
    const half: Pair[] = [
      [1, 2],
      [2, 4],
      [-1, -2],
    ];
    expect(agreement(half)).toEqual({ count: 3, pearson: 1, slope: 0.5 });
    const { pearson, slope } = agreement([
      [0, 0],
      [1, 0],
      [0, 1],
      [1, 1],
    ]);
    expect([pearson, slope]).toEqual([0, 0]);
  });

  it("does not invent a correlation", () => {
    expect(agreement([[1, 2]]).pearson).toBeUndefined();
    expect(
      agreement([
        [1, 2],
        [3, 2],
      ]),
    ).toEqual({ count: 2, pearson: undefined, slope: undefined });
    expect(
      agreement([
        [3, 1],
        [3, 2],
      ]),
    ).toEqual({ count: 2, pearson: undefined, slope: 0 });
  });

  it("in words", () => {
    expect(agreementWords(agreement([]), "run here")).toBe("");
    expect(agreementWords(agreement([[1, 1]]), "run here")).toBe("1 cell run here: one point has no correlation");
    const words = agreementWords({ count: 3, pearson: 0.98765, slope: 0.5 }, "run here");
    expect(words).toBe("3 cells run here: Pearson 0.988 · slope 0.500 (approximate per exact)");
  });
});

describe("scatter", () => {
  const box = { x: 10, y: 0, size: 100 };

  it("gives both axes one range with zero in it", () => {
    const [low, high] = frameOf([[1, 4]]);
    expect(low).toBeLessThan(0);
    expect(high).toBeGreaterThan(4);
    expect(frameOf([])).toEqual([-1, 1]);
    expect(frameOf([[0, 0]])).toEqual([-1, 1]);
  });

  it("puts equal pairs on the diagonal, exact upwards", () => {
    expect(placed([-1, -1], [-1, 1], box)).toEqual([10, 100]);
    expect(placed([1, 1], [-1, 1], box)).toEqual([110, 0]);
    expect(placed([0, 1], [-1, 1], box)).toEqual([60, 0]);
  });

  it("finds the point under the mouse, the last one drawn where two lie together", () => {
    const pairs: Pair[] = [
      [0, 0],
      [0, 0],
      [1, 1],
    ];
    expect(nearest(pairs, [61, 51], [-1, 1], box)).toBe(1);
    expect(nearest(pairs, [80, 20], [-1, 1], box)).toBeUndefined();
  });
});
