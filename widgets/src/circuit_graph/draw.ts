/** A circuit as plain arithmetic: what a threshold leaves, where nodes stand, which one is under the pointer. */

export interface Net {
  /** How many nodes there are. */
  count: number;
  /** Source and target of each edge, one pair after the other. */
  edges: ArrayLike<number>;
  values: ArrayLike<number>;
}

/**
 * The edges that stay, in their order: those of size `threshold` or more whose two nodes still have a way in and a way out.
 * A node that nothing enters needs no way in, one that nothing leaves no way out. The rule of `Graph.pruned` in Python.
 */
export function pruned({ count, edges, values }: Net, threshold: number): number[] {
  const ends = (kept: readonly number[], side: 0 | 1): Uint8Array => {
    const found = new Uint8Array(count);
    for (const edge of kept) found[edges[2 * edge + side]] = 1;
    return found;
  };
  const all = Array.from({ length: values.length }, (_, edge) => edge);
  const [leaves, enters] = [ends(all, 0), ends(all, 1)];
  let kept = all.filter((edge) => Math.abs(values[edge]) >= threshold);
  for (;;) {
    const [out, into] = [ends(kept, 0), ends(kept, 1)];
    const open = (node: number) => (into[node] || !enters[node]) && (out[node] || !leaves[node]);
    const fewer = kept.filter((edge) => open(edges[2 * edge]) && open(edges[2 * edge + 1]));
    if (fewer.length === kept.length) return kept;
    kept = fewer;
  }
}

const STOPS = 120;

/** Thresholds for a slider, rising: 0, then sizes at ranks that grow by a constant factor, so that few edges get as much room as many. */
export function stopsOf(values: ArrayLike<number>): number[] {
  const sizes = Float64Array.from(Array.from(values, Math.abs).filter(Number.isFinite)).sort().reverse();
  const ranks = Array.from({ length: STOPS }, (_, at) => Math.round(sizes.length ** (at / (STOPS - 1))) - 1);
  const found = new Set(ranks.map((rank) => sizes[rank]));
  return [...new Set([0, ...found])].filter((size) => size >= 0).sort((a, b) => a - b);
}

/** The stops at which an edge is left: a slider that leads into nothing helps nobody. */
export function usefulStops(net: Net, stops: readonly number[]): number[] {
  let [low, high] = [0, stops.length - 1];
  // What a threshold leaves shrinks as it rises, so the last useful stop can be bisected.
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (pruned(net, stops[middle]).length) low = middle;
    else high = middle - 1;
  }
  return stops.slice(0, low + 1);
}

/** The stop nearest to a threshold from below: the slider never claims more than is cut. */
export function stopAt(stops: readonly number[], threshold: number): number {
  return Math.max(0, stops.filter((stop) => stop <= threshold).length - 1);
}

/** How many dotted parts at the beginning all names of a row share, their last parts left alone. */
export function sharedParts(names: readonly string[]): number {
  const parts = names.map((name) => name.split("."));
  const least = Math.min(...parts.map((part) => part.length));
  let shared = 0;
  while (names.length > 1 && shared < least - 1 && parts.every((part) => part[shared] === parts[0][shared])) shared++;
  return shared;
}

/** The names of one row, with as much of what they share as fits all of them; at the least, what tells them apart. */
export function rowNames(names: readonly string[], fits: (name: string) => boolean): string[] {
  const shared = sharedParts(names);
  const without = (count: number) => names.map((name) => name.split(".").slice(count).join("."));
  for (let count = 0; count < shared; count++) if (without(count).every(fits)) return without(count);
  return without(shared);
}

/**
 * What stands beside the rows: the block that a node's own name tells (`blocks.3.mlp.out`), which readers know, or else its layer,
 * which may merely count the rows of the drawing.
 */
export function rowMarks(nodes: readonly string[], layers: readonly string[] | undefined) {
  const blocks = nodes.map((name) => name.match(/(?:^|\.)blocks\.(\d+)(?:\.|$)/)?.[1] ?? "");
  if (blocks.some(Boolean)) return { word: "block", marks: blocks };
  return layers && { word: "layer", marks: [...layers] };
}

/** How far a curve swings to the side, so that long edges do not run through the nodes between their ends; never out of the picture. */
export function swing(dx: number, dy: number, x: number, width: number, edge: number): number {
  if (Math.abs(dx) > 40 || Math.abs(dy) < 80) return 0;
  const size = Math.min(110, Math.abs(dy) * 0.35);
  const inward = x + size > width ? -1 : x - size < 0 ? 1 : 0;
  return (inward || (edge % 2 ? 1 : -1)) * size;
}

export interface Spot {
  node: number;
  x: number;
  y: number;
  /** Room for this node in its row. */
  room: number;
  /** As much of its name as fits, empty if none does; whether it stands under the node; and the size of what is drawn. */
  label: string;
  under: boolean;
  width: number;
  tall: number;
}

export interface Drawing {
  spots: Spot[];
  /** Rows from the bottom up: which row of the whole graph, and its height on screen. */
  rows: { row: number; y: number }[];
  width: number;
  height: number;
}

const TALLEST = 600;
const ROW = { least: 28, most: 54 };

/** Nodes in their rows, the lowest at the bottom; rows without a node take no room. */
export function arranged(nodes: readonly number[], rowOf: ArrayLike<number>, width: number, gutter: number): Drawing {
  const levels = [...new Set(nodes.map((node) => rowOf[node]))].sort((a, b) => a - b);
  const tall = Math.min(ROW.most, Math.max(ROW.least, TALLEST / Math.max(1, levels.length)));
  const height = Math.ceil(Math.max(2, levels.length) * tall);
  const rows = levels.map((row, at) => ({ row, y: height - (at + 0.5) * tall }));
  const spots = rows.flatMap(({ row, y }) => {
    const members = nodes.filter((node) => rowOf[node] === row);
    const room = (width - gutter) / members.length;
    return members.map((node, at) => ({
      node,
      x: gutter + (at + 0.5) * room,
      y,
      room,
      label: "",
      under: false,
      width: 0,
      tall: 0,
    }));
  });
  return { spots, rows, width, height };
}

/** The node under a point, or near enough to mean it. */
export function nodeAt({ spots, rows }: Drawing, x: number, y: number): Spot | undefined {
  const row = rows.reduce<number | undefined>(
    (best, one) => (best === undefined || Math.abs(one.y - y) < Math.abs(best - y) ? one.y : best),
    undefined,
  );
  if (row === undefined || Math.abs(row - y) > 14) return undefined;
  return spots.find((spot) => spot.y === row && Math.abs(spot.x - x) <= Math.min(spot.room / 2, spot.width / 2 + 6));
}

/** One step by key: along the row, or to the nearest node of the next row. Without a start, the first node of the lowest row. */
export function stepped(
  { spots, rows }: Drawing,
  from: number | undefined,
  right: number,
  up: number,
): Spot | undefined {
  const here = spots.find((spot) => spot.node === from);
  if (!here) return spots[0];
  const level = rows.findIndex(({ y }) => y === here.y);
  const clamp = (place: number, count: number) => Math.min(Math.max(0, place), count - 1);
  const { y } = rows[clamp(level + up, rows.length)];
  const row = spots.filter((spot) => spot.y === y);
  if (y === here.y) return row[clamp(row.indexOf(here) + right, row.length)];
  return row.reduce((best, spot) => (Math.abs(spot.x - here.x) < Math.abs(best.x - here.x) ? spot : best));
}

/** Edges that end (side 1) or begin (side 0) at a node, the largest first. */
export function edgesAt(net: Net, kept: readonly number[], node: number, side: 0 | 1): number[] {
  const found = kept.filter((edge) => net.edges[2 * edge + side] === node);
  return found.sort((a, b) => Math.abs(net.values[b]) - Math.abs(net.values[a]));
}

/** Nodes that an edge of these touches, in their own order. */
export function nodesOf({ count, edges }: Net, kept: readonly number[]): number[] {
  const found = new Uint8Array(count);
  for (const edge of kept) found[edges[2 * edge]] = found[edges[2 * edge + 1]] = 1;
  return Array.from(found.keys()).filter((node) => found[node]);
}
