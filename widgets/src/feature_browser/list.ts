/** Which features are listed and in which order: no browser needed. */

import type { ArrayEntry, Numbers } from "../shared/bytes.ts";

export interface Sort {
  /** A column, `feature`, or nothing for the order in which they came. */
  column: string;
  down: boolean;
}
export type Limits = Record<string, [low: number | null, high: number | null]>;

export interface ListSpec {
  title: string;
  check: string;
  unit: string;
  count: number;
  columns: string[];
  words: string[];
  dead: string;
  absent: string;
  arrays: ArrayEntry[];
}

export interface View {
  sort: Sort;
  limits: Limits;
  hideDead: boolean;
  found: ReadonlySet<number> | undefined;
}

export interface Columns {
  features: Numbers;
  numbers: Record<string, Float32Array>;
  words: Record<string, string[]>;
  dead: string;
  /** All rows by the number of their feature, which settles ties. */
  byFeature: Uint32Array;
}

/** Equal numbers are told apart by a rank below this: both together fit the 53 bits of a double. */
const RANKS = 2 ** 21;

export function columnsOf(arrays: Record<string, Numbers>, spec: ListSpec): Columns {
  const together = spec.columns.length ? unshuffled(arrays.numbers as Uint8Array, spec.count) : [];
  return {
    features: arrays.feature,
    byFeature: rowsByFeature(arrays.feature),
    numbers: Object.fromEntries(spec.columns.map((name, at) => [name, together[at]])),
    words: Object.fromEntries(spec.words.map((name) => [name, JSON.parse(textOf(arrays[`words ${name}`]))])),
    dead: spec.dead,
  };
}

export function textOf(bytes: Numbers): string {
  return new TextDecoder().decode(bytes as Uint8Array<ArrayBuffer>);
}

/** All rows, ordered by their features, whose numbers are whole and below 2^24. */
export function rowsByFeature(features: Numbers): Uint32Array {
  return ranked(features.length, (row) => features[row]);
}

/** Places from 0, by a key that is whole and below 2^32; equal keys keep their order. */
function ranked(count: number, keyOf: (place: number) => number): Uint32Array {
  // Loops, because from() and map() with a function take several times as long on 10^5 rows.
  const keys = new Float64Array(count);
  for (let place = 0; place < count; place++) keys[place] = keyOf(place) * RANKS + place;
  keys.sort();
  const order = new Uint32Array(count);
  for (let at = 0; at < count; at++) order[at] = keys[at] % RANKS;
  return order;
}

/** Planes of bytes, as payload.py lays them, to one array of floats per column. */
export function unshuffled(bytes: Uint8Array, rows: number): Float32Array[] {
  return Array.from({ length: rows ? bytes.length / (4 * rows) : 0 }, (_, column) => {
    const whole = new Uint8Array(4 * rows);
    for (let plane = 0; plane < 4; plane++) {
      const from = (column * 4 + plane) * rows;
      for (let row = 0; row < rows; row++) whole[row * 4 + plane] = bytes[from + row];
    }
    return new Float32Array(whole.buffer);
  });
}

/** Rows that pass, in order. Missing numbers come last whichever way, ties by the lower number of the feature. */
export function rowsOf(columns: Columns, view: View): Uint32Array {
  const kept = passing(columns, view);
  const { column, down } = view.sort;
  if (column === "feature") return down ? tiesFirst(columns, kept).reverse() : tiesFirst(columns, kept);
  if (columns.numbers[column]) return sorted(tiesFirst(columns, kept), columns.numbers[column], down);
  if (columns.words[column]) return sortedWords(tiesFirst(columns, kept), columns.words[column], down);
  return kept;
}

/** The kept rows by feature: an order in which equals may stay. */
function tiesFirst({ byFeature }: Columns, kept: Uint32Array): Uint32Array {
  if (kept.length === byFeature.length) return byFeature.slice();
  const keep = new Uint8Array(byFeature.length);
  for (const row of kept) keep[row] = 1;
  return byFeature.filter((row) => keep[row]);
}

function passing({ features, numbers, dead }: Columns, { limits, hideDead, found }: View): Uint32Array {
  const tests = Object.entries(limits).filter(([name]) => numbers[name]);
  const kept = new Uint32Array(features.length);
  let count = 0;
  for (let row = 0; row < features.length; row++) {
    if (hideDead && dead && numbers[dead][row] === 0) continue;
    if (found && !found.has(features[row])) continue;
    // Written so that NaN, which is in no range, does not pass.
    const inside = tests.every(([name, [low, high]]) => {
      const value = numbers[name][row];
      return value >= (low ?? -Infinity) && value <= (high ?? Infinity);
    });
    if (inside) kept[count++] = row;
  }
  return kept.slice(0, count);
}

/** One whole number per value that grows with it: doubles sort without a comparison, ten times faster. */
function sorted(rows: Uint32Array, values: Numbers, down: boolean): Uint32Array {
  const value = new Float32Array(1);
  const bits = new Uint32Array(value.buffer);
  const order = ranked(rows.length, (place) => {
    // Adding 0 makes -0 a plain 0, whose bits are others.
    value[0] = values[rows[place]] + 0;
    return keyOf(value[0], bits[0], down);
  });
  for (let at = 0; at < order.length; at++) order[at] = rows[order[at]];
  return order;
}

/** The bits of a float as a number that grows with it. */
function keyOf(value: number, bits: number, down: boolean): number {
  if (Number.isNaN(value)) return 0xffffffff;
  const rising = bits >>> 31 ? ~bits >>> 0 : (bits | 0x80000000) >>> 0;
  return down ? 0xffffffff - rising : rising;
}

/** Sorting is stable: equals stay by feature. */
function sortedWords(rows: Uint32Array, words: string[], down: boolean): Uint32Array {
  const way = down ? -1 : 1;
  return rows.sort((a, b) => (words[a] < words[b] ? -way : words[a] > words[b] ? way : 0));
}

/** What a click on a column's head asks for: largest first, smallest first, as they came. */
export function nextSort(sort: Sort, column: string, words: boolean): Sort {
  if (sort.column !== column) return { column, down: !words && column !== "feature" };
  const first = !words && column !== "feature";
  return sort.down === first ? { column, down: !first } : { column: "", down: true };
}

/** Rows to draw: those in sight and a few around them. */
export function windowOf(
  top: number,
  height: number,
  line: number,
  count: number,
  spare: number,
): [from: number, to: number] {
  const from = Math.max(0, Math.floor(top / line) - spare);
  return [Math.min(from, count), Math.min(count, Math.ceil((top + height) / line) + spare)];
}

/** Where to scroll so that a row is in sight; where it is already, nowhere. */
export function scrollFor(at: number, top: number, height: number, line: number): number {
  if (at * line < top) return at * line;
  return (at + 1) * line > top + height ? (at + 1) * line - height : top;
}

/** A bound as it was typed: nothing is no bound, and what is no number is undefined. */
export function boundOf(typed: string): number | null | undefined {
  const words = typed.trim().replace(",", ".");
  if (words === "") return null;
  const value = Number(words);
  return Number.isNaN(value) ? undefined : value;
}

/** Largest size in a column, for the bars behind its numbers. */
export function largest(values: Numbers): number {
  let most = 0;
  for (const value of values) if (Number.isFinite(value) && Math.abs(value) > most) most = Math.abs(value);
  return most;
}

export function countWords(shown: number, all: number): string {
  const words = (n: number) => n.toLocaleString("en-US");
  return shown === all ? `${words(all)} features` : `${words(shown)} of ${words(all)} features`;
}
