import { describe, expect, it } from "vitest";
import { bent, extentOf, scaleFor, shareAt, ticksFor } from "../shared/scale.ts";
import {
  barAt,
  barEnds,
  layoutFor,
  nearestCurve,
  nearestPoint,
  peakOf,
  placeOf,
  stretches,
  withGround,
} from "./draw.ts";
import { penOf, tickWords } from "./paint.ts";

const of = (...values: number[]) => Float64Array.from(values);
const scale = (low: number, high: number, log: boolean, least = Math.min(Math.abs(low) || high, Math.abs(high))) =>
  scaleFor({ low, high, least }, log, 0);

describe("scales", () => {
  it("span what is finite and know the smallest size", () => {
    const lines = [of(1, Number.NaN, -8), of(0, Number.POSITIVE_INFINITY, 0.5)];
    expect(extentOf(lines)).toEqual({ low: -8, high: 1, least: 0.5 });
    expect(extentOf([of(Number.NaN)])).toEqual({ low: 0, high: 1, least: 0 });
  });

  it("are logarithmic where everything is above 0", () => {
    const made = scale(0.01, 100, true);
    expect(made.kind).toBe("log");
    expect([0.01, 1, 100].map((value) => shareAt(made, value))).toEqual([0, 0.5, 1]);
  });

  it("keep a place for 0 and for negative numbers, and say so by their kind", () => {
    const made = scale(-100, 100, true, 0.1);
    expect([made.kind, made.knee]).toEqual(["symlog", 0.1]);
    expect(shareAt(made, 0)).toBe(0.5);
    for (const value of [0.05, 0.1, 3, 100]) expect(bent(made, -value)).toBe(-bent(made, value));
    const places = [-100, -1, -0.1, -0.02, 0, 0.02, 0.1, 1, 100].map((value) => shareAt(made, value));
    expect(places).toEqual([...places].sort((a, b) => a - b));
    expect(scale(0, 8, true, 1).kind).toBe("symlog");
  });

  it("do not give a tiny number all the room", () => {
    expect(scale(0, 1, true, 1e-30).knee).toBeCloseTo(1e-8, 20);
    expect(scale(-1, 1, true, 1e-30).knee).toBeCloseTo(1e-4, 12);
  });

  it("stay linear where there is nothing but 0, and have room where there is one value", () => {
    expect(scaleFor({ low: 0, high: 0, least: 0 }, true).kind).toBe("linear");
    for (const log of [false, true]) {
      const made = scaleFor({ low: 5, high: 5, least: 5 }, log);
      expect(shareAt(made, 5)).toBeCloseTo(0.5, 9);
      expect(made.to).toBeGreaterThan(made.from);
    }
  });
});

describe("ticks", () => {
  it("are round, in range and apart", () => {
    expect(ticksFor(scale(0, 1, false), 0.25)).toEqual([0, 0.5, 1]);
    expect(ticksFor(scale(-0.3, 0.3, false), 0.1)).toEqual([-0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3]);
    expect(ticksFor(scale(0, 3, false), 0.01, true)).toEqual([0, 1, 2, 3]);
  });

  it("are powers on a log axis, and finer or plain on a short one", () => {
    expect(ticksFor(scale(0.001, 1000, true), 0.1)).toEqual([0.001, 0.01, 0.1, 1, 10, 100, 1000]);
    expect(ticksFor(scale(1, 60, true), 0.1)).toEqual([1, 2, 5, 10, 20, 50]);
    const narrow = ticksFor(scale(90, 110, true), 0.2);
    expect(narrow.length).toBeGreaterThanOrEqual(3);
    expect(narrow.every((tick) => tick >= 90 && tick <= 110)).toBe(true);
  });

  it("hold 0 on an axis that bends around it", () => {
    const made = scale(-100, 100, true, 1);
    expect(ticksFor(made, 0.1)).toEqual([-100, -10, -1, 0, 1, 10, 100]);
    expect(ticksFor(made, 0.3)).toContain(0);
  });

  it("are written alike", () => {
    expect([80000, 100000, 0.30000000000000004, 1e-7].map(tickWords)).toEqual(["80000", "100000", "0.3", "1e-7"]);
  });
});

describe("curves", () => {
  it("break where a value is missing", () => {
    const gaps = of(1, 2, Number.NaN, 4, Number.POSITIVE_INFINITY, 6);
    expect(stretches([gaps], 6)).toEqual([[0, 1], [3, 3], [5, 5]]); // biome-ignore format: pairs
    expect(stretches([gaps, of(1, Number.NaN, 1, 1, 1, 1)], 6)).toEqual([[0, 0], [3, 3], [5, 5]]); // biome-ignore format: pairs
    expect(stretches([of(Number.NaN)], 1)).toEqual([]);
  });

  it("stand on 0 as bars, and as lines where 0 is near", () => {
    expect(withGround({ low: 5, high: 6, least: 5 }, "bars").low).toBe(0);
    expect(withGround({ low: 5, high: 6, least: 5 }, "lines").low).toBe(5);
    expect(withGround({ low: 1, high: 6, least: 1 }, "lines").low).toBe(0);
    expect(withGround({ low: -6, high: -1, least: 1 }, "lines").high).toBe(0);
  });

  it("as bars begin at edges or stand around what is counted", () => {
    expect(barEnds(of(0, 1, 4), false)).toEqual([[0, 1], [1, 4], [4, 7]]); // biome-ignore format: pairs
    expect(barEnds(of(2, 4), true)).toEqual([[1.1, 2.9], [3.1, 4.9]]); // biome-ignore format: pairs
    expect(barEnds(of(3), false)).toEqual([[2.5, 3.5]]);
  });

  it("find what is near the mouse", () => {
    expect([-5, 14, 16, 99].map((mouse) => nearestPoint([0, 10, 20, 30], mouse))).toEqual([0, 1, 2, 3]);
    expect([-5, 19, 20, 99].map((mouse) => barAt([0, 10, 20, 30], mouse))).toEqual([0, 1, 2, 3]);
    expect(nearestCurve([10, Number.NaN, 30], 24)).toBe(2);
    expect(nearestCurve([Number.NaN], 24)).toBeUndefined();
  });

  it("find their largest size and, of a thinned result, the nearest point", () => {
    expect(peakOf(of(Number.NaN, 1, -7, 3))).toBe(2);
    expect(placeOf(undefined, 4, 9)).toBe(3);
    expect(placeOf(of(0, 50, 51, 99), 4, 60)).toBe(2);
  });

  it("differ in colour and dash from their neighbours, in 35 ways", () => {
    const pens = Array.from({ length: 35 }, (_, at) => penOf(at, { dark: false } as never));
    expect(new Set(pens.map((pen) => JSON.stringify(pen))).size).toBe(35);
    for (let at = 1; at < 35; at++) expect(pens[at].dash).not.toEqual(pens[at - 1].dash);
  });

  it("fit a narrow cell", () => {
    const { width, plot } = layoutFor(316, 40);
    expect(plot.x + plot.width).toBeLessThanOrEqual(width);
  });
});
