import { describe, expect, it } from "vitest";
import { PageModel } from "../host/model.ts";
import { inflate, numbers, split } from "./bytes.ts";
import { centreOf, codeOf, decoded, MISSING, rampFor, table } from "./colours.ts";
import { actOf } from "./keyboard.ts";
import { extentOf, rangeOf, shownMaps } from "./maps.ts";
import { type Model, patient, type Spot, sameSpot, toggled } from "./model.ts";
import { atScale, exact, short, span } from "./numbers.ts";
import { csv, cut, visible } from "./text.ts";

describe("bytes", () => {
  it("inflates zlib streams", async () => {
    const raw = Uint8Array.from({ length: 999 }, (_, at) => at % 7);
    const stream = new Blob([raw]).stream().pipeThrough(new CompressionStream("deflate"));
    expect(await inflate(new Uint8Array(await new Response(stream).arrayBuffer()))).toEqual(raw);
  });

  it("splits a payload along its table, arrays aligned to eight bytes", () => {
    const raw = new Uint8Array(24);
    raw.set([1, 2, 3]);
    new DataView(raw.buffer).setFloat64(8, 0.5, true);
    new DataView(raw.buffer).setFloat32(16, -2, true);
    const table = [
      { name: "a", dtype: "u1" as const, shape: [3] },
      { name: "b", dtype: "f8" as const, shape: [1] },
      { name: "c", dtype: "f4" as const, shape: [1, 1] },
    ];
    const found = split(raw, table);
    expect([[...found.a], [...found.b], [...found.c]]).toEqual([[1, 2, 3], [0.5], [-2]]);
  });

  it("reads floats that start at an odd byte", () => {
    const raw = new Uint8Array(9);
    new DataView(raw.buffer).setFloat32(1, 1.5, true);
    expect([...numbers(raw.subarray(1, 5), "f4")]).toEqual([1.5]);
  });
});

describe("numbers", () => {
  it("prints the shortest decimal that names a float32", () => {
    for (const value of [0.1, 1 / 3, 123456.789, 1e-30, -7.25, 16777217, 3.4e38])
      expect(Math.fround(Number(exact(Math.fround(value), "f4")))).toBe(Math.fround(value));
    expect(exact(Math.fround(0.1), "f4")).toBe("0.1");
    expect(exact(0.1, "f8")).toBe("0.1");
    expect(exact(Math.fround(0.1), "f8")).toBe("0.10000000149011612");
    expect([exact(Number.NaN, "f4"), exact(-Infinity, "f4")]).toEqual(["NaN", "-inf"]);
  });

  it("labels shortly", () => {
    expect([short(0.30000001), short(12345.6), short(1e-7), short(0)]).toEqual(["0.3", "12350", "1e-7", "0"]);
    expect([span([-2, 2]), span([0, 1])]).toEqual(["±2", "0 to 1"]);
    expect([atScale(0.756, [-40, 40]), atScale(-0.001, [-1, 1]), atScale(1e-9, [0, 1e-8])]).toEqual([
      "0.8",
      "0.00",
      "1e-9",
    ]);
  });
});

describe("colours", () => {
  it("codes zero as the middle of a signed range, in both directions", () => {
    expect(centreOf([-3, 3])).toBe(127);
    expect(decoded(127, [-3, 3])).toBe(0);
    expect([codeOf(9, [-3, 3]), codeOf(-9, [-3, 3]), codeOf(Number.NaN, [-3, 3])]).toEqual([254, 0, MISSING]);
  });

  it("re-colours codes of one range for another", () => {
    const words = table(rampFor([-1, 1], false), [1, 2, 3], [-2, 2], [-1, 1]);
    expect(words[0]).toBe(words[60]);
    expect(words[MISSING]).toBe(0xff030201);
  });
});

describe("text", () => {
  it("shows what would hide", () => {
    expect(visible("a\n")).toBe("a↵");
    expect(visible("  ")).toBe("␣␣");
    expect(visible("\u202eevil")).toBe("[U+202E]evil");
    expect(visible("")).toBe("∅");
    expect(visible("<script>")).toBe("<script>");
  });

  it("cuts by letters and quotes by the rules of CSV", () => {
    expect(cut("👍👍👍👍", 3)).toBe("👍👍…");
    expect(csv([["a,b", 'say "x"', 1.5]])).toBe('"a,b","say ""x""",1.5\r\n');
    expect(csv([["=1+1"]])).toBe('"\'=1+1"\r\n');
  });
});

describe("patience", () => {
  it("does not let an echo of what was told set a newer value back", async () => {
    const model = new PageModel({ pointed: {} }) as unknown as Model<{ pointed: Spot }>;
    const told: Spot[] = [];
    model.save_changes = () => told.push(model.get("pointed"));
    const { set, stop } = patient(model, 5);
    set("pointed", { x: 1 });
    await new Promise((done) => setTimeout(done, 15));
    set("pointed", { x: 2 });
    model.set("pointed", { x: 1 }); // the echo
    expect(model.get("pointed")).toEqual({ x: 2 });
    await new Promise((done) => setTimeout(done, 15));
    expect(told).toEqual([{ x: 1 }, { x: 2 }]);
    model.set("pointed", { x: 9 }); // later, somebody else may point
    expect(model.get("pointed")).toEqual({ x: 9 });
    stop();
  });
});

describe("state", () => {
  it("pins and unpins", () => {
    const spot = { layer: 1, head: 2 };
    expect(toggled([], spot)).toEqual([spot]);
    expect(toggled([{ head: 2, layer: 1 }], spot)).toEqual([]);
    expect(sameSpot({ a: 1 }, { a: 1, b: 2 })).toBe(false);
  });

  it("reads keys, but leaves the browser's own alone", () => {
    const key = (name: string, more = {}) => ({
      key: name,
      shiftKey: false,
      ctrlKey: false,
      metaKey: false,
      altKey: false,
      ...more,
    });
    expect(actOf(key("ArrowLeft", { shiftKey: true }))).toEqual({ kind: "move", x: -10, y: 0 });
    expect(actOf(key("c"))).toEqual({ kind: "copy" });
    expect(actOf(key("c", { ctrlKey: true }))).toBeUndefined();
    expect(actOf(key("x"))).toBeUndefined();
  });

  it("ranges as pictures.py does", () => {
    expect(rangeOf(Float32Array.of(-1, 3, Number.NaN))).toEqual([-3, 3]);
    expect(rangeOf(Float32Array.of(0, 0))).toEqual([0, 1]);
    expect(extentOf(Float32Array.of(Number.NaN))).toEqual([0, 0]);
    expect(shownMaps([5, 1], 3)).toEqual([1]);
    expect(shownMaps(undefined, 3)).toEqual([0]);
  });
});
