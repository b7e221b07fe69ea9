/** Pages of features: from bytes to words and numbers, and what can be asked of those that are in the file. */

import { type ArrayEntry, type Numbers, unpack } from "../shared/bytes.ts";
import { exact, short } from "../shared/numbers.ts";
import { textOf } from "./list.ts";

export interface Tokens {
  words: string[];
  values: Numbers;
}
export interface Others {
  numbers: number[];
  values: Numbers;
}
export interface Context {
  band: string;
  example: string;
  position: string;
  value: number | undefined;
  /** The code of an image's cls row, which is no patch. */
  cls?: number;
  /** The token that `position` is about. */
  at?: number;
  values: Numbers;
  tokens?: string[];
  image?: { pixels: Uint8Array; height: number; width: number };
  grid?: [rows: number, columns: number];
}
export interface Sheet {
  feature: number;
  figures: [name: string, value: number | string | boolean][];
  histogram?: { edges: Numbers; counts: Numbers };
  promoted?: Tokens;
  suppressed?: Tokens;
  neighbours?: Others;
  together?: Others;
  correlated?: Others;
  neurons?: Others;
  contexts?: Context[];
}

type Ref = [pool: string, start: number, shape: number[]];
// biome-ignore lint/suspicious/noExplicitAny: JSON of feature_sheets.py
type Raw = any;

/** All pages of one payload. */
export async function sheetsOf(view: ArrayBufferView | null, table: readonly ArrayEntry[]): Promise<Sheet[]> {
  const pools = await unpack(view, table);
  return JSON.parse(textOf(pools.words)).map((raw: Raw) => sheetOf(raw, pools));
}

export function sheetOf(raw: Raw, pools: Record<string, Numbers>): Sheet {
  const at = ([pool, start, shape]: Ref): Numbers =>
    pools[pool]?.subarray(start, start + sizeOf(shape)) ?? new Float32Array();
  const sheet: Sheet = { feature: raw.feature, figures: raw.figures };
  if (raw.histogram) sheet.histogram = { edges: at(raw.histogram.edges), counts: at(raw.histogram.counts) };
  for (const name of ["promoted", "suppressed"] as const)
    if (raw[name]) sheet[name] = { words: raw[name].words, values: at(raw[name].values) };
  for (const name of ["neighbours", "together", "correlated", "neurons"] as const)
    if (raw[name]) sheet[name] = { numbers: raw[name].numbers, values: at(raw[name].values) };
  if (raw.contexts) sheet.contexts = raw.contexts.map((context: Raw) => contextOf(context, at));
  return sheet;
}

function contextOf(raw: Raw, at: (ref: Ref) => Numbers): Context {
  const words = (value: unknown) => (value === undefined ? "" : String(value));
  const found: Context = {
    band: words(raw.band),
    example: words(raw.example),
    position: words(raw.position),
    value: raw.value === undefined ? undefined : Number(raw.value),
    values: at(raw.values),
  };
  if (raw.cls !== undefined) found.cls = Number(raw.cls);
  if (raw.at !== undefined) found.at = raw.at;
  if (raw.tokens) found.tokens = raw.tokens;
  if (raw.image) {
    const [height, width] = raw.image[2];
    found.image = { pixels: at(raw.image) as Uint8Array, height, width };
    found.grid = raw.grid;
  }
  return found;
}

function sizeOf(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}

/** A number as exactly as it came: float32 where it fits one. */
export function precisely(value: number): string {
  return exact(value, Math.fround(value) === value ? "f4" : "f8");
}

/** Three digits, but counts whole. */
export function brief(value: number): string {
  return Number.isInteger(value) && Math.abs(value) < 1e7 ? String(value) : short(value);
}

/** Contexts by band, bands in the order in which they come. */
export function bandsOf(contexts: readonly Context[]): [band: string, contexts: Context[]][] {
  const bands = new Map<string, Context[]>();
  for (const context of contexts) bands.set(context.band, [...(bands.get(context.band) ?? []), context]);
  return [...bands];
}

/** Where the largest value is; the first of equals, and nowhere if all are missing. */
export function peakOf(values: Numbers): number {
  let found = -1;
  for (let at = 0; at < values.length; at++)
    if (!Number.isNaN(values[at]) && (found < 0 || values[at] > values[found])) found = at;
  return found;
}

/** Features in whose contexts or promoted tokens a text occurs, as `Pages.find` does: case aside, with and without spaces between tokens. */
export function search(sheets: Iterable<Sheet>, text: string): number[] {
  const sought = text.toLowerCase();
  const holds = (words: string) => words.toLowerCase().includes(sought);
  const found: number[] = [];
  for (const { feature, contexts, promoted } of sheets)
    if (
      contexts?.some(({ tokens }) => tokens && (holds(tokens.join("")) || holds(tokens.join(" ")))) ||
      promoted?.words.some(holds)
    )
      found.push(feature);
  return found;
}

/** Features visited, one after another, with a place among them. */
export class Visits {
  private readonly list: number[] = [];
  private at = -1;

  /** Going where one is already is no step. */
  go(feature: number): void {
    if (this.list[this.at] === feature) return;
    this.list.splice(++this.at, Infinity, feature);
  }

  /** The feature visited before (-1) or after (1) this one, which becomes the present one. */
  step(by: number): number | undefined {
    if (!this.has(by)) return undefined;
    this.at += by;
    return this.list[this.at];
  }

  has(by: number): boolean {
    return this.list[this.at + by] !== undefined;
  }
}

/** A few things by number; the one asked for longest ago goes first. */
export class Few<Thing> {
  private readonly known = new Map<number, Thing>();

  constructor(private readonly most: number) {}

  get(key: number): Thing | undefined {
    const found = this.known.get(key);
    if (found !== undefined) this.set(key, found);
    return found;
  }

  set(key: number, thing: Thing): void {
    this.known.delete(key);
    this.known.set(key, thing);
    if (this.known.size > this.most) this.known.delete(this.known.keys().next().value!);
  }
}
