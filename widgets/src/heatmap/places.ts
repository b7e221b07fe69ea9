/** From named places to slices and cells and back: `{layer: 3, position: 7}` ⇄ slice 3, row …, column …. */

import type { Spot } from "../shared/model.ts";
import type { Cell } from "./view.ts";

export class Places {
  /** Sizes of the axes that choose a slice: all but the last two. */
  private readonly sizes: number[];

  constructor(
    private readonly keys: readonly string[],
    shape: readonly number[],
  ) {
    this.sizes = shape.slice(0, -2);
  }

  /** Index along every leading axis of a slice. */
  leading(frame: number): number[] {
    return this.sizes.map((size, at) => Math.floor(frame / product(this.sizes.slice(at + 1))) % size);
  }

  /** The slice at these indices. */
  frame(leading: readonly number[]): number {
    return this.sizes.reduce((frame, size, at) => frame * size + leading[at], 0);
  }

  /** The slice with one leading index changed. */
  moved(frame: number, axis: number, index: number): number {
    return this.frame(this.leading(frame).map((place, at) => (at === axis ? index : place)));
  }

  spot(frame: number, [row, column]: Cell): Spot {
    const places = [...this.leading(frame), ...(this.keys.length > 1 ? [row] : []), column];
    return Object.fromEntries(this.keys.map((key, at) => [key, places[at]]));
  }

  /** Row and column of a spot, if it names both. A grid of one axis has one row. */
  cell(spot: Spot): Cell | undefined {
    const [row, column] = [this.keys.length > 1 ? spot[this.keys.at(-2)!] : 0, spot[this.keys.at(-1)!]];
    return row === undefined || column === undefined ? undefined : [row, column];
  }

  frameOf(spot: Spot): number {
    return this.frame(this.keys.slice(0, -2).map((key) => spot[key] ?? 0));
  }

  /** Is this spot on that slice? */
  onFrame(spot: Spot, frame: number): boolean {
    return this.cell(spot) !== undefined && this.frameOf(spot) === frame;
  }

  /** `here`, with the indices that another widget's spot has in common with us. */
  following(here: Spot, other: Spot): Spot {
    return Object.fromEntries(Object.entries(here).map(([key, place]) => [key, other[key] ?? place]));
  }
}

function product(sizes: readonly number[]): number {
  return sizes.reduce((a, b) => a * b, 1);
}
