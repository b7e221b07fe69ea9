import { describe, expect, it } from "vitest";
import { MISSING } from "../shared/colours.ts";
import { furthest, type Layer, paint, pooled, reach, showMasks } from "./draw.ts";
import { looksOf } from "./masks.ts";
import { Places } from "./places.ts";
import { cellAt, panned, plotSize, revealing, ticks, whole, zoomed } from "./view.ts";

const colours = Uint32Array.from({ length: 256 }, (_, code) => code + 1000);
const layer = (codes: number[], width: number): Layer => ({
  codes: Uint8Array.from(codes),
  width,
  height: codes.length / width,
  x: 0,
  y: 0,
  stepX: 1,
  stepY: 1,
});
const painted = (width: number, height: number, shown: Layer, sx: number, sy: number, x = 0, y = 0, centre = 127) => {
  const sheet = { words: new Uint32Array(width * height), width, height };
  paint(sheet, { x, y, sx, sy }, shown, colours, centre);
  return [...sheet.words].map((word) => (word ? word - 1000 : -1));
};

describe("paint", () => {
  it("gives every cell its pixels", () => {
    expect(painted(4, 2, layer([1, 2, 3, 4], 2), 2, 1)).toEqual([1, 1, 2, 2, 3, 3, 4, 4]);
  });

  it("keeps a lone peak when many cells share a pixel", () => {
    const codes = Array.from({ length: 100 }, () => 127);
    codes[37] = 3;
    expect(painted(2, 2, layer(codes, 10), 0.2, 0.2)).toEqual([127, 3, 127, 127]);
  });

  it("shows what is scrolled to, and nothing beyond the edge", () => {
    expect(painted(3, 1, layer([1, 2, 3], 3), 1, 1, 1)).toEqual([2, 3, -1]);
  });

  it("leaves a line between large cells", () => {
    const [first, second] = [
      painted(24, 1, layer([5, 6], 2), 12, 1).slice(0, 12),
      painted(24, 1, layer([5, 6], 2), 12, 1).slice(12),
    ];
    expect(first).toEqual([...Array(11).fill(5), -1]);
    expect(second).toEqual([...Array(11).fill(6), -1]);
  });

  it("lays a finer tile over a coarse preview", () => {
    const coarse: Layer = { ...layer([10], 1), stepX: 4, stepY: 1 };
    const tile: Layer = { ...layer([1, 2], 2), x: 2 };
    const sheet = { words: new Uint32Array(4), width: 4, height: 1 };
    for (const one of [coarse, tile]) paint(sheet, { x: 0, y: 0, sx: 1, sy: 1 }, one, colours, 127);
    expect([...sheet.words].map((word) => word - 1000)).toEqual([10, 10, 1, 2]);
  });
});

describe("masks", () => {
  const LINE = 0xff808080;
  const marked = (bits: number[], looks: ("blank" | "up" | "down")[], ground = 7) => {
    const sheet = { words: new Uint32Array(24 * 12).fill(ground), width: 24, height: 12 };
    showMasks(sheet, { x: 0, y: 0, sx: 12, sy: 12 }, { rows: 1, columns: 2 }, bits, looks, 1);
    return (x: number, y: number) => sheet.words[y * 24 + x];
  };

  it("hatches what is known to be zero, and only that", () => {
    const at = marked([0, 1], ["up"]);
    for (let y = 0; y < 12; y++)
      for (let x = 0; x < 24; x++) expect(at(x, y)).toBe(x >= 12 && (x + y) % 6 === 0 ? LINE : 7);
  });

  it("leans other masks the other way", () => {
    const at = marked([2, 0], ["up", "down"]);
    expect([at(0, 0), at(1, 1), at(2, 1), at(1, 5), at(12, 0)]).toEqual([LINE, LINE, 7, 7, 7]);
  });

  it("blanks what is no row, and never draws into the gaps between cells", () => {
    expect(marked([1, 3], ["blank", "up"])(13, 5)).toBe(0);
    expect(marked([1, 1], ["up"], 0)(0, 0)).toBe(0);
  });

  it("knows the masks that analyses agree on", () => {
    expect(looksOf(["no_row", "known_zero", "refused"])).toEqual(["blank", "up", "down"]);
  });
});

describe("pooling", () => {
  it("takes the code furthest from the centre and skips missing ones", () => {
    expect(furthest(Uint8Array.of(120, MISSING, 200, 10), 2, 0, 1, 0, 1, 127)).toBe(10);
    expect(furthest(Uint8Array.of(MISSING, MISSING), 2, 0, 0, 0, 1, 127)).toBe(MISSING);
  });

  it("says how many cells share a pixel", () => {
    expect(pooled({ x: 0, y: 0, sx: 0.25, sy: 2 }, [1, 1])).toEqual([1, 4]);
    expect(pooled({ x: 0, y: 0, sx: 0.1, sy: 0.1 }, [4, 4])).toEqual([12, 12]);
  });

  it("covers every cell exactly once when zoomed out", () => {
    const { from, to } = reach(7, 0, 0.07, { first: 0, step: 1, count: 100 });
    const seen = new Set<number>();
    from.forEach((low, pixel) => {
      for (let at = low; at <= to[pixel]; at++) seen.add(at);
    });
    expect(seen.size).toBe(100);
  });
});

describe("view", () => {
  const size = { rows: 100, columns: 200 };
  const box = { x: 0, y: 0, width: 400, height: 200 };

  it("keeps the cell under the pointer where it is", () => {
    const near = zoomed(whole(size, box), 4, { x: 100, y: 50 }, size, box);
    expect(cellAt(near, 100, 50, size)).toEqual(cellAt(whole(size, box), 100, 50, size));
  });

  it("does not zoom out beyond the grid nor pan past its edge", () => {
    expect(zoomed(whole(size, box), 0.1, { x: 0, y: 0 }, size, box)).toEqual(whole(size, box));
    expect(panned(whole(size, box), 500, 500, size, box)).toEqual(whole(size, box));
  });

  it("moves just far enough to show a cell", () => {
    const near = zoomed(whole(size, box), 4, { x: 0, y: 0 }, size, box);
    expect(revealing(near, [0, 0], size, box)).toEqual(near);
    expect(revealing(near, [0, 199], size, box).x).toBe(150);
  });

  it("places labels at round numbers, never closer than asked", () => {
    expect(ticks(0, 100, 1, 14)).toEqual([0, 20, 40, 60, 80]);
    expect(ticks(3, 7, 30, 14)).toEqual([3, 4, 5, 6]);
  });

  it("fits tall, wide and tiny grids into a notebook cell", () => {
    for (const [rows, columns] of [
      [6, 12],
      [4096, 4096],
      [10_000, 8],
      [1, 40],
      [3, 20_000],
    ]) {
      const { width, height } = plotSize({ rows, columns }, 600);
      expect(width).toBeLessThanOrEqual(600);
      expect(height).toBeLessThanOrEqual(700);
      expect(Math.min(width, height)).toBeGreaterThan(9);
    }
  });
});

describe("places", () => {
  const places = new Places(["layer", "head", "query", "key"], [2, 3, 4, 5]);

  it("turns slices and cells into named indices and back", () => {
    const spot = places.spot(4, [1, 2]);
    expect(spot).toEqual({ layer: 1, head: 1, query: 1, key: 2 });
    expect([places.frameOf(spot), places.cell(spot)]).toEqual([4, [1, 2]]);
    expect(places.moved(4, 0, 0)).toBe(1);
  });

  it("follows only the axes it shares", () => {
    expect(places.following({ layer: 0, head: 0, query: 1, key: 1 }, { layer: 1, token: 9 })).toEqual({
      layer: 1,
      head: 0,
      query: 1,
      key: 1,
    });
  });

  it("treats a single axis as one row", () => {
    expect(new Places(["feature"], [9]).spot(0, [0, 4])).toEqual({ feature: 4 });
  });
});
