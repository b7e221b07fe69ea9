/** What token strips and image overlays share: several named maps, one or all of them on screen, one or many scales. */

import type { ArrayEntry, Dtype, Numbers } from "./bytes.ts";
import type { Range } from "./colours.ts";
import { choice } from "./dom.ts";
import type { Model, Spot } from "./model.ts";

export interface MapSpec {
  title: string;
  unit: string;
  names: string[];
  dtype: Dtype;
  source: string;
  range: [number, number];
  data: [number, number];
  arrays: ArrayEntry[];
}

export interface MapState {
  spec: MapSpec;
  data: DataView;
  shown: number[];
  scale: string;
  pointed: Spot;
  pinned: Spot[];
}

/** More maps than this side by side are no longer compared, only scrolled past. */
const MOST_AT_ONCE = 16;

/** Smallest and largest finite value. */
export function extentOf(values: Numbers): Range {
  let [low, high] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  for (const value of values) {
    if (!Number.isFinite(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : [0, 0];
}

/** The colour range of these values by the rule of pictures.py: symmetric about 0 if signed, else from 0. */
export function rangeOf(values: Numbers): Range {
  const [low, high] = extentOf(values);
  const size = Math.max(Math.abs(low), Math.abs(high)) || 1;
  return low < 0 ? [-size, size] : [0, size];
}

/** The shown maps that exist; the first one if none does. */
export function shownMaps(shown: readonly number[] | undefined, count: number): number[] {
  const found = (shown ?? []).filter((map) => Number.isInteger(map) && map >= 0 && map < count);
  return found.length ? found : [0];
}

/** Lists to choose the map and the scale; nothing to choose, no list. */
export function mapControls<State extends MapState>(model: Model<State>, spec: MapSpec): HTMLElement[] {
  const count = spec.names.length;
  if (count < 2) return [];
  const all = Array.from({ length: count }, (_, map) => map);
  const options = count <= MOST_AT_ONCE ? [...spec.names, `all ${count} maps`] : spec.names;
  const shown = shownMaps(model.get("shown"), count);
  const pick = (index: number) => {
    model.set("shown", (index < count ? [index] : all) as State["shown"]);
    model.save_changes();
  };
  const scales = ["shared", "own"];
  const rescale = (index: number) => {
    model.set("scale", scales[index] as State["scale"]);
    model.save_changes();
  };
  return [
    choice("map", options, shown.length > 1 ? count : shown[0], pick),
    choice("scale", ["shared", "own"], Math.max(0, scales.indexOf(model.get("scale"))), rescale),
  ];
}
