import { expect, it } from "vitest";
import { listCsv, pageCsv } from "./copies.ts";
import { barAt, bars, barWords, shares } from "./draw.ts";
import { bandsOf, brief, type Context, Few, peakOf, precisely, search, sheetOf, Visits } from "./sheet.ts";

const box = { x: 10, y: 0, width: 100, height: 50 };
const context = (band: string, tokens?: string[]): Context => ({
  band,
  example: "1",
  position: "2",
  value: 1,
  values: Float32Array.of(1),
  ...(tokens ? { tokens } : {}),
});

it("bars stand side by side, a count of one visible, none for nothing", () => {
  const found = bars(Float32Array.of(1e6, 1, 0, 10), box);
  expect(found.map(({ x }) => x)).toEqual([10, 35, 60, 85]);
  expect(found[0].height).toBe(50);
  expect(found[1].height).toBeGreaterThanOrEqual(1.5);
  expect(found[2].height).toBe(0);
  expect(found[3].height).toBeCloseTo((50 * Math.log(11)) / Math.log(1e6 + 1), 6);
});

it("finds the bar under the mouse", () => {
  expect([10, 34, 35, 109, 110, 9].map((x) => barAt(x, 4, box))).toEqual([0, 0, 1, 3, undefined, undefined]);
  expect(barWords(Float32Array.of(0, 0.5, 1), Float32Array.of(3, 4), 1)).toEqual(["0.5 to 1", "4"]);
});

it("shares keep the sign and survive what is missing", () => {
  expect(shares(Float32Array.of(1, -2, Number.NaN))).toEqual([0.5, -1, 0]);
  expect(shares(Float32Array.of(0))).toEqual([0]);
});

it("reads a sheet: places in pools, NaN as a word, parts that are not there", () => {
  const pools = { f4: Float32Array.of(9, 1, 2, 3, 4), u1: Uint8Array.from({ length: 12 }, (_, at) => at) };
  const sheet = sheetOf(
    {
      feature: 3,
      figures: [["max", "NaN"]],
      promoted: { words: ["<b>"], values: ["f4", 1, [1]] },
      contexts: [
        { band: "top", value: "NaN", at: 0, cls: 2, tokens: ["a"], values: ["f4", 2, [1]] },
        { image: ["u1", 0, [2, 2, 3]], grid: [1, 2], values: ["f4", 3, [2]] },
      ],
    },
    pools,
  );
  expect(sheet.promoted).toEqual({ words: ["<b>"], values: Float32Array.of(1) });
  expect(sheet.contexts![0].value).toBeNaN();
  expect([sheet.contexts![0].at, sheet.contexts![0].cls, sheet.contexts![1].cls]).toEqual([0, 2, undefined]);
  expect(sheet.contexts![1].image).toMatchObject({ height: 2, width: 2 });
  expect([...sheet.contexts![1].values]).toEqual([3, 4]);
  expect(sheet.histogram).toBeUndefined();
});

it("groups by band in the order of their first member", () => {
  const groups = bandsOf([context("top"), context("low"), context("top")]);
  expect(groups.map(([band, members]) => [band, members.length])).toEqual([
    ["top", 2],
    ["low", 1],
  ]);
});

it("finds the first of the largest", () => {
  expect(peakOf(Float32Array.of(Number.NaN, 1, 3, 3))).toBe(2);
  expect(peakOf(Float32Array.of(Number.NaN))).toBe(-1);
});

it("searches across token borders and in promoted tokens, whatever the case", () => {
  const sheets = [
    { feature: 1, figures: [], contexts: [context("top", ["An", "na went"])] },
    { feature: 2, figures: [], promoted: { words: [" ANNA"], values: Float32Array.of(1) } },
    {
      feature: 3,
      figures: [],
      suppressed: { words: ["Anna"], values: Float32Array.of(1) },
      contexts: [context("top")],
    },
  ];
  expect(search(sheets, "anna")).toEqual([1, 2]);
  expect(search(sheets, "an na")).toEqual([1]);
  expect(search(sheets, "<script>")).toEqual([]);
});

it("goes back and forward as a browser does", () => {
  const visits = new Visits();
  for (const feature of [1, 2, 2, 3]) visits.go(feature);
  expect(visits.step(-1)).toBe(2);
  visits.go(2);
  expect(visits.has(1)).toBe(true);
  visits.go(9);
  expect([visits.has(1), visits.step(1), visits.step(-1), visits.step(-1), visits.step(-1)]).toEqual([
    false,
    undefined,
    2,
    1,
    undefined,
  ]);
});

it("forgets all that lay ahead once it goes elsewhere", () => {
  const visits = new Visits();
  for (const feature of [1, 2, 3]) visits.go(feature);
  visits.step(-1);
  visits.step(-1);
  visits.go(9);
  expect([visits.has(1), visits.step(-1)]).toEqual([false, 1]);
});

it("keeps a few, the ones used last", () => {
  const few = new Few<string>(2);
  few.set(1, "a");
  few.set(2, "b");
  few.get(1);
  few.set(3, "c");
  expect([few.get(1), few.get(2), few.get(3)]).toEqual(["a", undefined, "c"]);
});

it("prints a float32 as one", () => {
  expect(precisely(Math.fround(0.1))).toBe("0.1");
  expect(precisely(0.1)).toBe("0.1");
  expect([brief(12345), brief(0.123456), brief(-7), brief(1e9)]).toEqual(["12345", "0.123", "-7", "1e9"]);
  expect(precisely(1 / 3)).toBe(String(1 / 3));
});

it("tables hold what is shown, and formulas stay words", () => {
  const features = Float32Array.of(7, 2);
  const columns = {
    features,
    byFeature: Uint32Array.of(1, 0),
    words: { name: ["=1+1", "b"] },
    numbers: { max: Float32Array.of(0.1, Number.NaN) },
    dead: "",
  };
  expect(listCsv(columns, [1, 0])).toBe('feature,name,max\r\n2,b,NaN\r\n7,"\'=1+1",0.1\r\n');
  expect(pageCsv({ feature: 1, figures: [] })).toBe("band,example,position,value,text,values\r\n");
});
