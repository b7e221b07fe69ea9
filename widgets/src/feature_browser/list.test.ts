import { describe, expect, it } from "vitest";
import {
  boundOf,
  type Columns,
  countWords,
  largest,
  nextSort,
  rowsByFeature,
  rowsOf,
  scrollFor,
  unshuffled,
  type View,
  windowOf,
} from "./list.ts";

const NaN_ = Number.NaN;
const listed = Float32Array.of(9, 4, 7, 1, 3, 0);
const columns: Columns = {
  features: listed,
  byFeature: rowsByFeature(listed),
  numbers: {
    fires: Float32Array.of(5, 0, 5, 2, 1, -0),
    skew: Float32Array.of(-1, NaN_, -0.5, 2, NaN_, 0),
  },
  words: { name: ["b", "a", "c", "a", "B", ""] },
  dead: "fires",
};
const view: View = { sort: { column: "", down: true }, limits: {}, hideDead: false, found: undefined };
const features = (more: Partial<View>) =>
  [...rowsOf(columns, { ...view, ...more })].map((row) => columns.features[row]);

describe("order", () => {
  it("keeps what came while nothing is asked", () => {
    expect(features({})).toEqual([9, 4, 7, 1, 3, 0]);
  });

  it("puts ties by the lower number and what is missing last, both ways", () => {
    expect(features({ sort: { column: "fires", down: true } })).toEqual([7, 9, 1, 3, 0, 4]);
    expect(features({ sort: { column: "fires", down: false } })).toEqual([0, 4, 3, 1, 7, 9]);
    expect(features({ sort: { column: "skew", down: true } })).toEqual([1, 0, 7, 9, 3, 4]);
    expect(features({ sort: { column: "skew", down: false } })).toEqual([9, 7, 0, 1, 3, 4]);
  });

  it("knows features and words as columns too", () => {
    expect(features({ sort: { column: "feature", down: true } })).toEqual([9, 7, 4, 3, 1, 0]);
    expect(features({ sort: { column: "name", down: false } })).toEqual([0, 3, 1, 4, 9, 7]);
    expect(features({ sort: { column: "gone", down: false } })).toEqual([9, 4, 7, 1, 3, 0]);
  });

  it("agrees with a plain comparison on random numbers of every size", () => {
    let seed = 1;
    const next = () => {
      seed = (seed * 48271) % 2147483647;
      return seed / 2147483647;
    };
    const values = Float32Array.from({ length: 3000 }, () =>
      next() < 0.1 ? 0 : (next() - 0.5) * 10 ** (60 * next() - 30),
    );
    const mixed = Float32Array.from(values, (_, at) => (at * 7) % 3001);
    const many: Columns = {
      features: mixed,
      byFeature: rowsByFeature(mixed),
      numbers: { value: values },
      words: {},
      dead: "",
    };
    for (const down of [true, false]) {
      const way = down ? -1 : 1;
      const slow = [...values.keys()].sort(
        (a, b) => way * (values[a] - values[b]) || many.features[a] - many.features[b],
      );
      expect([...rowsOf(many, { ...view, sort: { column: "value", down } })]).toEqual(slow);
    }
  });
});

describe("filters", () => {
  it("leave out what is dead, out of range, or not found", () => {
    expect(features({ hideDead: true })).toEqual([9, 7, 1, 3]);
    expect(features({ limits: { fires: [1, 4] } })).toEqual([1, 3]);
    expect(features({ limits: { skew: [null, 0] } })).toEqual([9, 7, 0]);
    expect(features({ found: new Set([0, 7, 88]) })).toEqual([7, 0]);
    expect(features({ limits: { gone: [1, 2] } })).toHaveLength(6);
  });

  it("an open range still leaves out what is missing", () => {
    expect(features({ limits: { skew: [null, null] } })).toEqual([9, 7, 1, 0]);
  });

  it("bounds are read as typed", () => {
    expect(["", " 3 ", "1e-3", "0,5", "-2", "x", "1 2"].map(boundOf)).toEqual([
      null,
      3,
      0.001,
      0.5,
      -2,
      undefined,
      undefined,
    ]);
  });
});

it("undoes the planes of bytes", () => {
  const values = Float32Array.of(1.5, -2, 3e-8, NaN_, 7, 0.1);
  const raw = new Uint8Array(values.buffer);
  const bytes = new Uint8Array(24);
  for (let column = 0; column < 2; column++)
    for (let row = 0; row < 3; row++)
      for (let plane = 0; plane < 4; plane++)
        bytes[(column * 4 + plane) * 3 + row] = raw[(column * 3 + row) * 4 + plane];
  expect(unshuffled(bytes, 3)).toEqual([Float32Array.of(1.5, -2, 3e-8), Float32Array.of(NaN_, 7, Math.fround(0.1))]);
});

it("a head goes from largest first to smallest first to as it came", () => {
  const first = nextSort({ column: "", down: true }, "fires", false);
  const second = nextSort(first, "fires", false);
  expect([first.down, second.down, nextSort(second, "fires", false).column]).toEqual([true, false, ""]);
  expect(nextSort(first, "feature", false)).toEqual({ column: "feature", down: false });
  expect(nextSort(first, "name", true)).toEqual({ column: "name", down: false });
});

it("draws the rows in sight and a few more, never past the ends", () => {
  expect(windowOf(0, 480, 24, 100_000, 6)).toEqual([0, 26]);
  expect(windowOf(2400, 480, 24, 100_000, 6)).toEqual([94, 126]);
  expect(windowOf(2_399_520, 480, 24, 100_000, 6)).toEqual([99_974, 100_000]);
  expect(windowOf(500, 480, 24, 3, 6)).toEqual([3, 3]);
});

it("scrolls no further than it must", () => {
  expect(scrollFor(5, 0, 240, 24)).toBe(0);
  expect(scrollFor(10, 0, 240, 24)).toBe(24);
  expect(scrollFor(1, 100, 240, 24)).toBe(24);
});

it("counts and sizes", () => {
  expect(countWords(12, 12)).toBe("12 features");
  expect(countWords(200, 4096)).toBe("200 of 4,096 features");
  expect(largest(Float32Array.of(NaN_, -3, 2, Infinity))).toBe(3);
});
