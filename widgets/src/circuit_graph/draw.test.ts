import { describe, expect, it } from "vitest";
import {
  arranged,
  edgesAt,
  nodeAt,
  nodesOf,
  pruned,
  rowMarks,
  rowNames,
  stepped,
  stopAt,
  stopsOf,
  swing,
  usefulStops,
} from "./draw.ts";
import cases from "./pruning.json" with { type: "json" };

const net = (count: number, edges: number[][], values: number[]) => ({ count, edges: edges.flat(), values });

describe("pruning", () => {
  it.each(cases.map((one) => [one.name, one] as const))("leaves what Python leaves: %s", (_, one) => {
    expect(pruned(net(one.count, one.edges, one.values), one.threshold)).toEqual(one.kept);
  });

  it("leaves out what is no number", () => {
    expect(pruned(net(2, [[0, 1]], [Number.NaN]), 0)).toEqual([]);
  });

  it("ends on a cycle", () => {
    const loop = net(3, [[0, 1], [1, 2], [2, 0]], [1, 2, 3]); // biome-ignore format: one edge each
    expect([pruned(loop, 1), pruned(loop, 1.5)]).toEqual([[0, 1, 2], []]);
  });

  it("takes thirty thousand edges in the time of a frame or two", () => {
    const layer = (node: number) => Math.floor(node / 20);
    const nodes = Array.from({ length: 260 }, (_, at) => at);
    const edges = nodes.flatMap((a) => nodes.filter((b) => layer(a) < layer(b)).map((b) => [a, b]));
    const many = net(
      260,
      edges,
      edges.map((_, at) => Math.sin(at * 12.9898) ** 5),
    );
    expect(edges.length).toBeGreaterThan(30_000);
    const kept = pruned(many, 0.5);
    expect(kept.length).toBeGreaterThan(0);
    expect(nodesOf(many, kept).length).toBeLessThanOrEqual(260);
  });
});

describe("the slider", () => {
  it("has stops from 0 to the largest size, dense where edges are few", () => {
    const values = Array.from({ length: 30_000 }, (_, at) => (at % 2 ? 1 : -1) * (at + 1));
    const stops = stopsOf(values);
    expect([stops[0], stops[1], stops.at(-1)]).toEqual([0, 1, 30_000]);
    expect(stops.filter((stop) => stop > 29_800).length).toBeGreaterThan(40);
    expect(stops.length).toBeLessThan(125);
    expect([stopsOf([]), stopsOf([Number.NaN, -2])]).toEqual([[0], [0, 2]]);
  });

  it("ends where the last path ends, not at the largest edge", () => {
    const dead = net(4, [[0, 1], [1, 2], [0, 3]], [1, 2, 9]); // biome-ignore format: one edge each
    const path = net(3, [[0, 1], [1, 2]], [1, 5]); // biome-ignore format: one edge each
    expect(usefulStops(dead, [0, 1, 2, 9])).toEqual([0, 1, 2, 9]);
    expect(usefulStops(path, [0, 1, 5])).toEqual([0, 1]);
    expect(usefulStops(net(2, [], []), [0])).toEqual([0]);
  });

  it("stands at or below a threshold set elsewhere", () => {
    expect([stopAt([0, 1, 5], 3), stopAt([0, 1, 5], 5), stopAt([0, 1, 5], 99)]).toEqual([1, 2, 2]);
  });
});

describe("names", () => {
  const heads = ["blocks.3.attn.z.0", "blocks.3.attn.z.11"];

  it("lose as much of a shared beginning as they must, and no more than is shared", () => {
    const upTo = (length: number) => (name: string) => name.length <= length;
    expect(rowNames(heads, upTo(20))).toEqual(heads);
    expect(rowNames(heads, upTo(9))).toEqual(["attn.z.0", "attn.z.11"]);
    expect(rowNames(heads, upTo(0))).toEqual(["0", "11"]);
    expect(rowNames(["blocks.3.attn", "blocks.3.mlp.out"], upTo(0))).toEqual(["attn", "mlp.out"]);
    expect(rowNames(["blocks.3.mlp.out"], upTo(0))).toEqual(["blocks.3.mlp.out"]);
    expect(rowNames(["a.b", "a.b"], upTo(0))).toEqual(["b", "b"]);
  });
});

it("marks rows by the block in a name, or by the layer where names tell none", () => {
  const blocks = rowMarks(["embed", "blocks.0.attn.q.1", "encoder.blocks.12.mlp.out"], ["0", "1", "2"]);
  expect(blocks).toEqual({ word: "block", marks: ["", "0", "12"] });
  expect(rowMarks(["a", "b"], ["0", "7"])).toEqual({ word: "layer", marks: ["0", "7"] });
  expect(rowMarks(["a", "b"], undefined)).toBeUndefined();
});

it("lets long upright edges swing out to either side, never out of the picture, and no others", () => {
  expect([swing(0, -54, 300, 600, 2), swing(200, -300, 300, 600, 2)]).toEqual([0, 0]);
  expect([swing(0, -200, 300, 600, 2), swing(0, -200, 300, 600, 3)]).toEqual([-70, 70]);
  expect([swing(0, -200, 580, 600, 3), swing(0, -200, 20, 600, 2)]).toEqual([-70, 70]);
});

describe("places", () => {
  // embed (row 0) below a and b (row 1) below logits (row 4): rows without a node take no room.
  const drawing = arranged([0, 1, 2, 3], [0, 1, 1, 4], 400, 0);
  const at = (node: number) => drawing.spots.find((spot) => spot.node === node)!;
  const wide = { ...drawing, spots: drawing.spots.map((spot) => ({ ...spot, width: 40 })) };

  it("puts the lowest row at the bottom and shares the width of a row", () => {
    expect(drawing.rows.map(({ row }) => row)).toEqual([0, 1, 4]);
    expect([at(1).x, at(2).x, at(3).x]).toEqual([100, 300, 200]);
    expect(at(0).y).toBeGreaterThan(at(1).y);
    expect(at(1).y).toBeGreaterThan(at(3).y);
    expect(at(3).y).toBeGreaterThan(0);
  });

  it("stays within a screen or two, however many rows", () => {
    const tall = arranged([...Array(40).keys()], [...Array(40).keys()], 400, 0);
    expect(tall.height).toBeLessThan(1300);
    expect(arranged([], [], 400, 0).spots).toEqual([]);
  });

  it("finds the node under the pointer, and none between nodes", () => {
    expect(nodeAt(wide, 115, at(1).y + 5)?.node).toBe(1);
    expect(nodeAt(wide, 200, at(1).y)).toBeUndefined();
    expect(nodeAt(wide, 100, at(1).y + 20)).toBeUndefined();
  });

  it("walks by key along rows and between them", () => {
    expect(stepped(drawing, undefined, 1, 0)?.node).toBe(0);
    expect(stepped(drawing, 1, 1, 0)?.node).toBe(2);
    expect(stepped(drawing, 2, 1, 0)?.node).toBe(2);
    expect(stepped(drawing, 2, 0, 1)?.node).toBe(3);
    expect(stepped(drawing, 3, 0, -1)?.node).toBe(1);
    expect(stepped(drawing, 0, 0, -1)?.node).toBe(0);
  });
});

it("lists the edges of a node, the largest first", () => {
  const graph = net(4, [[0, 2], [1, 2], [2, 3]], [0.5, -2, 1]); // biome-ignore format: one edge each
  expect([edgesAt(graph, [0, 1, 2], 2, 1), edgesAt(graph, [0, 1, 2], 2, 0), edgesAt(graph, [0], 3, 1)]).toEqual([
    [1, 0],
    [2],
    [],
  ]);
});
