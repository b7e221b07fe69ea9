/** Where the numbers are: all of them here, or a coarse preview here and the rest asked from the kernel. */

import { type ArrayEntry, type Dtype, type Numbers, numbers } from "../shared/bytes.ts";
import { codeOf, decoded, type Range } from "../shared/colours.ts";
import type { Kernel } from "../shared/kernel.ts";
import type { Spot } from "../shared/model.ts";
import type { Layer } from "./draw.ts";
import type { Cell, Region, View } from "./view.ts";

export interface Spec {
  title: string;
  unit: string;
  /** Axis names as shown, and as keys of `pointed` (unlike names, keys never repeat). */
  axes: string[];
  keys: string[];
  shape: number[];
  labels: Record<string, string[]>;
  dtype: Dtype;
  source: string;
  /** Every value is here as a float; otherwise codes, pooled by `steps`, and the kernel has the rest. */
  exact: boolean;
  steps: [number, number];
  /** Codes are here for all slices, or for `frame` only. */
  whole: boolean;
  frame: number;
  ranges: Record<string, [number, number]>;
  data: [number, number];
  coded: [number, number];
  masks: string[];
  /** Masks that are too large to travel. */
  unshown: string[];
  /** How near an approximation came to the exact answer, in one line; empty if nobody asked. */
  check: string;
  /** Where the value furthest from 0 is. */
  peak: Spot;
  arrays: ArrayEntry[];
}

interface Tile extends Layer {
  values: Numbers;
}

const TILE = 256;
const KEPT_TILES = 192;

export class Source {
  readonly rows: number;
  readonly columns: number;
  private readonly tiles = new Map<string, Tile | "asked">();
  private readonly cells = new Map<string, number>();
  private made: { key: string; layer: Layer } | undefined;

  constructor(
    readonly spec: Spec,
    private readonly arrays: Record<string, Numbers>,
    private readonly kernel: Kernel<never>,
    private readonly arrived: () => void,
  ) {
    this.columns = spec.shape[spec.shape.length - 1];
    this.rows = spec.shape.length > 1 ? spec.shape[spec.shape.length - 2] : 1;
  }

  /** Can this slice be drawn without asking? */
  has(frame: number): boolean {
    return this.spec.exact || this.spec.whole || frame === this.spec.frame;
  }

  /** The coarse layer of a slice, coded in `range` if exact, else as it came. */
  base(frame: number, range: Range): Layer {
    const key = `${frame}:${range.join(":")}`;
    if (this.made?.key !== key)
      this.made = { key, layer: this.spec.exact ? this.coded(frame, range) : this.preview(frame) };
    return this.made.layer;
  }

  private coded(frame: number, range: Range): Layer {
    const size = this.rows * this.columns;
    const values = this.arrays.values.subarray(frame * size, (frame + 1) * size);
    const codes = Uint8Array.from(values as ArrayLike<number>, (value) => codeOf(value, range));
    return { codes, width: this.columns, height: this.rows, x: 0, y: 0, stepX: 1, stepY: 1 };
  }

  private preview(frame: number): Layer {
    const [height, width] = this.arrays.preview && this.spec.arrays[0].shape.slice(1);
    const at = (this.spec.whole ? frame : 0) * width * height;
    const codes = this.arrays.preview.subarray(at, at + width * height) as Uint8Array;
    return { codes, width, height, x: 0, y: 0, stepX: this.spec.steps[1], stepY: this.spec.steps[0] };
  }

  /**
   * Finer layers over the preview for what is in view (device pixels); asks for those not here yet.
   * `steps` are the cells per entry of what then covers the whole view: the tiles' own once all of them are here.
   */
  finer(frame: number, view: View, region: Region): { layers: Layer[]; steps: [number, number] } {
    const step = (scale: number) => 2 ** Math.floor(Math.log2(Math.max(1, 1 / scale)));
    const [stepY, stepX] = [step(view.sy), step(view.sx)];
    const coarse = { layers: [], steps: this.spec.steps };
    if (this.spec.exact || !this.kernel.alive || (stepY >= this.spec.steps[0] && stepX >= this.spec.steps[1]))
      return coarse;
    const found: (Layer | undefined)[] = [];
    const [tall, wide] = [TILE * stepY, TILE * stepX];
    for (let y = Math.floor(region.top / tall) * tall; y < region.bottom; y += tall)
      for (let x = Math.floor(region.left / wide) * wide; x < region.right; x += wide)
        found.push(this.tile(frame, y, x, stepY, stepX));
    const layers = found.filter((tile) => tile !== undefined);
    return { layers, steps: layers.length === found.length ? [stepY, stepX] : this.spec.steps };
  }

  private tile(frame: number, y: number, x: number, stepY: number, stepX: number): Tile | undefined {
    const key = [frame, y, x, stepY, stepX].join();
    const known = this.tiles.get(key);
    if (known) return known === "asked" ? undefined : known;
    this.tiles.set(key, "asked");
    const asked = { frame, y, x, height: TILE * stepY, width: TILE * stepX, steps: [stepY, stepX] };
    this.kernel.ask({ ask: "region", ...asked }, (answer, [bytes]) => {
      const values = numbers(new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength), this.spec.dtype);
      const [height, width] = answer.shape as [number, number];
      const codes = Uint8Array.from(values as ArrayLike<number>, (value) => codeOf(value, this.spec.coded));
      this.tiles.set(key, { codes, values, width, height, x, y, stepX, stepY });
      if (this.tiles.size > KEPT_TILES) this.tiles.delete(this.tiles.keys().next().value!);
      this.arrived();
    });
    return undefined;
  }

  /** The exact value of a cell if it is here; asks for it if the kernel has it. */
  exactAt(frame: number, [row, column]: Cell): number | undefined {
    const size = this.rows * this.columns;
    if (this.spec.exact) return this.arrays.values[frame * size + row * this.columns + column];
    const key = [frame, row, column].join();
    if (!this.cells.has(key) && this.kernel.alive)
      this.kernel.ask({ ask: "cell", frame, y: row, x: column }, (_, [bytes]) => {
        this.cells.set(key, bytes.getFloat64(0, true));
        this.arrived();
      });
    return this.cells.get(key);
  }

  /** What the preview knows of a cell: the middle of its code, for the block it was pooled into. */
  roughAt(frame: number, [row, column]: Cell, range: Range): number {
    const layer = this.base(frame, range);
    const code = layer.codes[Math.floor(row / layer.stepY) * layer.width + Math.floor(column / layer.stepX)];
    return decoded(code, this.spec.coded);
  }

  /** Names of the masks that cover a cell. */
  masksAt(frame: number, [row, column]: Cell): string[] {
    const bits = this.maskBits(frame)?.[row * this.columns + column] ?? 0;
    return this.spec.masks.filter((_, bit) => bits & (1 << bit));
  }

  /** One byte per cell of a slice, a bit per mask. */
  maskBits(frame: number): Numbers | undefined {
    const size = this.rows * this.columns;
    return this.arrays.masks?.subarray(frame * size, (frame + 1) * size);
  }

  /** All values of a rectangle, from here or from the kernel. */
  values(frame: number, region: Region, heard: (values: (row: number, column: number) => number) => void): boolean {
    if (this.spec.exact) {
      heard((row, column) => this.exactAt(frame, [row, column])!);
      return true;
    }
    if (!this.kernel.alive) return false;
    const [height, width] = [region.bottom - region.top, region.right - region.left];
    const asked = { frame, y: region.top, x: region.left, height, width, steps: [1, 1] };
    this.kernel.ask({ ask: "region", ...asked }, (_, [bytes]) => {
      const found = numbers(new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength), this.spec.dtype);
      heard((row, column) => found[(row - region.top) * width + column - region.left]);
    });
    return true;
  }
}
