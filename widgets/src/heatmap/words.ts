/** What the heatmap says: the caption under it, and what a place is called. */

import type { Range } from "../shared/colours.ts";
import { exact, short, span } from "../shared/numbers.ts";
import type { Said } from "../shared/readout.ts";
import { visible } from "../shared/text.ts";
import { maskWords } from "./masks.ts";
import type { Source, Spec } from "./source.ts";
import type { Cell } from "./view.ts";

export interface Drawn {
  range: Range;
  /** Most cells that share a pixel, down and across. */
  pooled: readonly [number, number];
  /** Are the pixels those of the preview, rather than of exact values? */
  coarse: boolean;
  /** Is the slice here at all? */
  here: boolean;
  alive: boolean;
}

/** What the pixels are: range, extent, type, and every rule by which something was left out. */
export function captionWords(spec: Spec, { range, pooled: [tall, wide], coarse, here, alive }: Drawn): string {
  const unit = spec.unit ? ` ${spec.unit}` : "";
  const notes = [`colours ${span(range)}${unit}`, `data ${short(spec.data[0])} to ${short(spec.data[1])}`, spec.source];
  if (tall * wide > 1) notes.push(`each pixel shows the cell furthest from 0 of up to ${tall}×${wide}`);
  if (coarse) {
    notes.push(`8-bit ${tall * wide > 1 ? "preview" : "colours"}`);
    notes.push(alive ? "hover or zoom in for exact values" : "exact values need a kernel");
  }
  if (!here) notes.push("this slice has to come from the kernel");
  if (spec.unshown.length) notes.push(`not marked at this size: ${spec.unshown.map(maskWords).join(", ")}`);
  return notes.join(" · ");
}

/** Axis by axis where a cell is, names beside their numbers. */
export function whereWords({ axes, labels }: Spec, places: readonly number[]): Said {
  return axes.map((axis, at) => {
    const [index, name] = [`${places[at]}`, labels[axis]?.[places[at]]];
    return [axis, name === undefined || name === index ? index : `${index} “${visible(name)}”`] as const;
  });
}

/** The value of a cell, exact or as near as the preview knows it. */
export function valueWords(source: Source, frame: number, cell: Cell, range: Range): string {
  const { unit, dtype } = source.spec;
  const known = source.exactAt(frame, cell);
  const rough = () => (source.has(frame) ? `≈ ${short(source.roughAt(frame, cell, range))} (8-bit preview)` : "…");
  const masks = source.masksAt(frame, cell);
  const words = known === undefined ? rough() : exact(known, dtype);
  return `${words}${unit && ` ${unit}`}${masks.length ? ` (${masks.map(maskWords).join(", ")})` : ""}`;
}
