import { describe, expect, it } from "vitest";
import {
  blockAt,
  blockOf,
  cellOf,
  groundOf,
  heightScale,
  heightsOf,
  type Land,
  placed,
  projectionFor,
  ridges,
  tintsOf,
  turned,
} from "./draw.ts";

const BOX = { x: 40, y: 30, width: 500, height: 300 };
const CAMERAS = [-180, -135, -90, -60, -24, 0, 45, 90, 170].flatMap((yaw) =>
  [5, 28, 60, 90].map((pitch) => ({ yaw, pitch })),
);

function land(rows: number, columns: number, values?: Record<number, number>): Land {
  const all = new Float32Array(rows * columns).fill(0.5);
  for (const [block, value] of Object.entries(values ?? {})) all[Number(block)] = value;
  return { rows, columns, values: all, offsets: new Float32Array(rows * columns), steps: [1, 1] };
}

describe("the scene", () => {
  it.each(CAMERAS)("lies in its box, peaks included, seen from $yaw° and $pitch°", (camera) => {
    const peak = { u: 0.9, v: 0.9, height: 1 };
    const to = projectionFor(camera, BOX, [peak]);
    const places = [...[0, 1].flatMap((u) => [0, 1].map((v) => to.at(u, v, 0))), to.at(peak.u, peak.v, peak.height)];
    for (const [x, y] of places) {
      expect(x).toBeGreaterThanOrEqual(BOX.x - 1e-6);
      expect(x).toBeLessThanOrEqual(BOX.x + BOX.width + 1e-6);
      expect(y).toBeGreaterThanOrEqual(BOX.y - 1e-6);
      expect(y).toBeLessThanOrEqual(BOX.y + BOX.height + 1e-6);
    }
  });

  it("shows equal heights equally long, wherever they stand", () => {
    const to = projectionFor({ yaw: -24, pitch: 28 }, BOX, []);
    const long = (u: number, v: number) => to.at(u, v, 0)[1] - to.at(u, v, 0.5)[1];
    expect(long(0, 0)).toBeCloseTo(long(1, 0.7), 9);
    expect(long(0, 0)).toBeGreaterThan(10);
  });

  it.each(CAMERAS)("draws what is nearer later, so that it hides what is behind: $yaw°", (camera) => {
    const made = land(5, 7);
    const to = projectionFor(camera, BOX, []);
    const { lines, blocks } = ridges(made, camera);
    const depths = lines.map((line) => {
      const ridge = blocks(line).map((block) => to.depth(...groundOf(made, block)));
      return ridge.reduce((a, b) => a + b) / ridge.length;
    });
    expect(depths).toEqual([...depths].sort((a, b) => b - a));
    expect(new Set(lines.flatMap(blocks)).size).toBe(35);
  });

  it("turns all the way round and never below the ground", () => {
    expect(turned({ yaw: 170, pitch: 80 }, 30, 40)).toEqual({ yaw: -160, pitch: 90 });
    expect(turned({ yaw: -170, pitch: 10 }, -30, -40)).toEqual({ yaw: 160, pitch: 5 });
  });
});

describe("blocks", () => {
  it("know the cell that stands for them", () => {
    const made: Land = { ...land(2, 3), steps: [4, 10], offsets: Float32Array.of(0, 13, 39, 0, 0, 27) };
    expect([0, 1, 2, 5].map((block) => cellOf(made, block))).toEqual([[0, 0], [1, 13], [3, 29], [6, 27]]); // biome-ignore format: pairs
    for (const block of [0, 1, 2, 5]) expect(blockOf(made, cellOf(made, block))).toBe(block);
  });

  it("are found at their tops: a spike among a thousand low ones, and what stands in front of it", () => {
    const spike = 6 * 40 + 23;
    const made = land(25, 40, { [spike]: -300 });
    const heights = heightsOf(made.values, heightScale(300, 0.5, false));
    for (const camera of [
      { yaw: -24, pitch: 28 },
      { yaw: 60, pitch: 40 },
      { yaw: 150, pitch: 20 },
    ]) {
      const to = projectionFor(camera, BOX, []);
      const [u, v] = groundOf(made, spike);
      const [x, top] = to.at(u, v, 1);
      expect(blockAt(made, heights, to, x, top)).toBe(spike);
      expect(blockAt(made, heights, to, x + 1, to.at(u, v, 0.6)[1])).toBe(spike);
      expect(blockAt(made, heights, to, x, top - 20)).toBeUndefined();
      const found = blockAt(made, heights, to, ...to.at(...groundOf(made, 20 * 40 + 5), 0))!;
      expect(to.depth(...groundOf(made, found))).toBeLessThanOrEqual(to.depth(...groundOf(made, 20 * 40 + 5)));
    }
  });

  it("without a value are not found", () => {
    const made = land(1, 1, { 0: Number.NaN });
    const heights = heightsOf(made.values, heightScale(1, 1, false));
    const to = projectionFor({ yaw: 0, pitch: 30 }, BOX, []);
    expect(blockAt(made, heights, to, ...to.at(0.5, 0.5, 0))).toBeUndefined();
  });
});

describe("heights", () => {
  it("are shares of the tallest, whatever the sign, and infinity is as tall as that", () => {
    const linear = heightScale(8, 1, false);
    expect([...heightsOf(Float32Array.of(-8, 4, 0, Number.NEGATIVE_INFINITY), linear)]).toEqual([1, 0.5, 0, 1]);
    expect(heightsOf(Float32Array.of(Number.NaN), linear)[0]).toBeNaN();
  });

  it("bend above the power of ten that the median stays under", () => {
    const log = heightScale(1000, 2.5, true);
    expect([log.kind, log.knee]).toEqual(["symlog", 10]);
    const [one, ten, most] = heightsOf(Float32Array.of(1, -10, 1000), log);
    expect([one, ten, most].map((height) => height.toFixed(4))).toEqual(["0.0333", "0.3333", "1.0000"]);
    expect(heightScale(0, 0, true).kind).toBe("linear");
  });

  it("have the colour of their sign and grey where masked", () => {
    const values = Float32Array.of(-9, 9, 0.1, -0.1, 9);
    const heights = heightsOf(values, heightScale(9, 1, false));
    expect([...tintsOf(values, heights, Uint8Array.of(0, 0, 0, 0, 1))]).toEqual([4, 8, 5, 1, 0]);
  });
});

describe("names", () => {
  it("overlap nowhere and stay inside", () => {
    const crowd = Array.from({ length: 5 }, (_, at) => ({ x: 290 + at, y: 40 + 3 * at, width: 150 }));
    const spots = placed(crowd, 320);
    spots.forEach(({ x, y }, at) => {
      expect(x + 75).toBeLessThanOrEqual(320);
      expect(y).toBeGreaterThanOrEqual(7);
      for (const other of spots.slice(0, at)) expect(Math.abs(other.y - y)).toBeGreaterThanOrEqual(14);
    });
  });

  it("stand over their peaks where there is room", () => {
    expect(placed([{ x: 100, y: 50, width: 40 }, { x: 200, y: 50, width: 40 }], 320)).toEqual([{ x: 100, y: 36 }, { x: 200, y: 36 }]); // biome-ignore format: pairs
  });
});
