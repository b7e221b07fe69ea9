/** Landscape: the sizes of a grid as mountains. Drag turns, hover reads, click pins; the highest spikes bear their names. */

import "./style.css";
import { maskWords } from "../heatmap/masks.ts";
import { type ArrayEntry, type Dtype, type Numbers, numbers, unpack } from "../shared/bytes.ts";
import { signColours } from "../shared/colours.ts";
import { flattened } from "../shared/copy.ts";
import { button, choice, make } from "../shared/dom.ts";
import type { Act } from "../shared/keyboard.ts";
import type { Model, Place, Spot } from "../shared/model.ts";
import { exact, short } from "../shared/numbers.ts";
import { hearPointer, type Point } from "../shared/pointer.ts";
import { type Said, sentence } from "../shared/readout.ts";
import type { Scale } from "../shared/scale.ts";
import { type Scene, Stage } from "../shared/stage.ts";
import { csv, cut, visible } from "../shared/text.ts";
import {
  blockAt,
  blockOf,
  type Camera,
  type Cell,
  cellOf,
  heightScale,
  heightsOf,
  type Land,
  type Projection,
  projectionFor,
  tintsOf,
  turned,
} from "./draw.ts";
import { type Axis, drawEdges, drawGround, drawLand, drawNames, drawSpot } from "./paint.ts";

interface Spec {
  title: string;
  check: string;
  unit: string;
  axes: [string, string];
  keys: [string, string];
  shape: [number, number];
  labels: Record<string, string[]>;
  dtype: Dtype;
  source: string;
  steps: [number, number];
  top: number;
  median: number;
  masks: string[];
  arrays: ArrayEntry[];
}
interface State extends Camera {
  spec: Spec;
  data: DataView;
  height: string;
  pointed: Spot;
  pinned: Spot[];
}
interface Spike {
  cell: Cell;
  value: number;
}

const START: Camera = { yaw: -24, pitch: 28 };
const TURN = 15;
const HEIGHTS = ["linear", "log"];
const MARGIN = { side: 78, sideSmall: 54, top: 36, bottom: 44 };

class Landscape implements Scene {
  readonly keys: Record<string, Act> = {
    a: { kind: "turn", x: -TURN, y: 0 },
    d: { kind: "turn", x: TURN, y: 0 },
    w: { kind: "turn", x: 0, y: TURN },
    s: { kind: "turn", x: 0, y: -TURN },
  };
  private readonly list = make("ol", { class: "act-spikes", "aria-label": "highest spikes" });
  private readonly legend = make("div", { class: "act-land-legend" });
  private readonly stage: Stage<State>;
  private land: Land | undefined;
  private masked: Numbers | undefined;
  private spikes: Spike[] = [];
  private heights: Float32Array = new Float32Array();
  private tints: Uint8Array = new Uint8Array();
  private scale: Scale = heightScale(1, 0, false);
  private projection: Projection | undefined;
  private follow: () => void = () => {};
  /** Values of cells that do not stand for their block, as the kernel has said them. */
  private readonly asked = new Map<string, number | undefined>();
  private lastSpike = -1;

  constructor(
    private readonly model: Model<State>,
    el: HTMLElement,
  ) {
    const words = {
      kind: "landscape",
      rest: "Drag to turn; hover or use the arrow keys to read; click pins.",
      pins: "pinned cells",
    };
    this.stage = new Stage(model, el, words, this.legend, this.list);
    this.stage.start(this, ["yaw", "pitch", "height"]);
    hearPointer(this.stage.plot, {
      hover: (point) => this.pointAt(this.cellAt(point)),
      click: (point) => this.pinAt(this.cellAt(point)),
      drag: (dx, dy) => this.turn(dx * 0.4, dy * 0.3),
    });
  }

  stop(): void {
    this.stage.stop();
  }

  private get spec(): Spec {
    return this.model.get("spec");
  }

  private get camera(): Camera {
    return { yaw: this.model.get("yaw"), pitch: this.model.get("pitch") };
  }

  async load(): Promise<void> {
    const { spec } = this;
    const arrays = await unpack(this.model.get("data"), spec.arrays);
    const [rows, columns] = spec.shape.map((size, axis) => Math.ceil(size / spec.steps[axis]));
    this.land = { rows, columns, values: arrays.values, offsets: arrays.offsets, steps: spec.steps };
    this.masked = arrays.masked;
    this.spikes = Array.from(arrays.spike_values, (value, at) => ({
      cell: [arrays.spikes[2 * at], arrays.spikes[2 * at + 1]],
      value,
    }));
    const size = spec.axes.map((axis, at) => `${spec.shape[at]} ${axis}`).join(" by ");
    const keys =
      `left and right move along ${spec.axes[1]}, up and down along ${spec.axes[0]}, a d w s turn, 0 turns back, ` +
      "p goes to the next spike, Enter pins, c copies CSV";
    this.stage.name(`Landscape ${spec.title}, ${size}; ${keys}`);
    this.fillControls();
    this.fillList();
    this.stage.redraw();
  }

  private fillControls(): void {
    const label = choice("height", HEIGHTS, 0, (index) => {
      this.model.set("height", HEIGHTS[index]);
      this.model.save_changes();
    });
    const list = label.querySelector("select")!;
    this.follow = () => {
      list.selectedIndex = Math.max(0, HEIGHTS.indexOf(this.model.get("height")));
    };
    const turns = make(
      "span",
      { class: "act-turns", role: "group", "aria-label": "turn" },
      button("⟲", "Turn left (a)", () => this.turn(-TURN, 0)),
      button("⟳", "Turn right (d)", () => this.turn(TURN, 0)),
      button("▲", "See more from above (w)", () => this.turn(0, TURN)),
      button("▼", "See more from the side (s)", () => this.turn(0, -TURN)),
      button("Reset", "Turn back (0)", () => this.look(START)),
    );
    const copies = this.stage.copies(
      () => flattened([this.stage.base, this.stage.marks], this.stage.theme.dark ? "#111" : "#fff"),
      () => this.copyCsv(),
    );
    this.stage.controls.replaceChildren(label, turns, copies);
  }

  private fillList(): void {
    const lines = this.spikes.map(({ cell }) => {
      const go = make("button", { type: "button" }, sentence(this.said(cell)));
      go.addEventListener("click", () => this.pointAt(cell));
      return make("li", {}, go);
    });
    this.list.replaceChildren(...lines);
  }

  draw(): void {
    if (!this.land) return;
    const { stage, spec, land } = this;
    const theme = stage.theme;
    this.follow();
    const width = stage.width - 4;
    const height = Math.round(Math.min(460, Math.max(260, width * 0.58)));
    const brush = stage.resize(width, height);
    this.scale = heightScale(spec.top, spec.median, this.model.get("height") === "log");
    this.heights = heightsOf(land.values, this.scale);
    this.tints = tintsOf(land.values, this.heights, this.masked);
    const small = width < 480;
    const peaks = this.spikes.map(({ cell, value }) => ({
      ...this.ground(cell),
      height: heightsOf(Float64Array.of(value), this.scale)[0],
      words: this.spikeWords(cell, value, small),
    }));
    const side = small ? MARGIN.sideSmall : MARGIN.side;
    const size = { width: Math.max(60, width - 2 * side), height: height - MARGIN.top - MARGIN.bottom };
    this.projection = projectionFor(this.camera, { x: side, y: MARGIN.top, ...size }, peaks);
    drawGround(brush, this.projection, this.scale, small ? "" : spec.unit, theme);
    drawLand(brush, land, this.heights, this.tints, this.camera, this.projection, theme);
    drawEdges(brush, this.projection, this.axes(), width, theme);
    drawNames(brush, peaks, this.projection, width, theme);
    this.sayLegend();
    this.mark();
    stage.ready();
  }

  private spikeWords([row, column]: Cell, value: number, small: boolean): string {
    if (small) return `${row}, ${column}: ${short(value)}`;
    const { axes } = this.spec;
    return `${axes[0]} ${this.name(0, row, 12)} · ${axes[1]} ${this.name(1, column, 12)}: ${short(value)}`;
  }

  private axes(): [Axis, Axis] {
    const { axes, shape, labels } = this.spec;
    const axis = (at: 0 | 1): Axis => ({ name: axes[at], count: shape[at], names: labels[axes[at]] });
    return [axis(0), axis(1)];
  }

  private name(axis: 0 | 1, index: number, longest: number): string {
    const name = this.spec.labels[this.spec.axes[axis]]?.[index];
    return name === undefined || name === String(index) ? String(index) : `${index} “${cut(visible(name), longest)}”`;
  }

  /** Where a cell stands: in the middle of its block, like what is drawn there. */
  private ground(cell: Cell): { u: number; v: number } {
    const { rows, columns } = this.land!;
    const block = blockOf(this.land!, cell);
    return { u: ((block % columns) + 0.5) / columns, v: (Math.floor(block / columns) + 0.5) / rows };
  }

  private sayLegend(): void {
    const { spec, stage } = this;
    const { below, above } = signColours(stage.theme.dark);
    const sign = (colour: string, words: string) => {
      const line = make("span", { class: "act-sign-line", "aria-hidden": "true" });
      line.style.background = colour;
      return make("span", { class: "act-legend" }, line, words);
    };
    const masks = spec.masks.length ? [sign("#808080", spec.masks.map(maskWords).join(", "))] : [];
    this.legend.replaceChildren(sign(above, "above 0"), sign(below, "below 0"), ...masks);
    const unit = spec.unit && ` ${spec.unit}`;
    const notes = [`height: size, up to ${short(spec.top)}${unit}`];
    if (this.scale.kind === "symlog") notes.push(`logarithmic above ${short(this.scale.knee)}${unit}`);
    if (spec.steps[0] * spec.steps[1] > 1)
      notes.push(`each point = the value furthest from 0 of ${spec.steps.join("×")} cells`);
    notes.push(`${spec.shape.join("×")} cells, ${spec.source}`);
    stage.caption.textContent = notes.join(" · ");
  }

  mark(): void {
    if (!this.land || !this.projection) return;
    const brush = this.stage.wiped();
    const pins = (this.model.get("pinned") ?? []).map((pin) => this.cell(pin)).filter((cell) => cell !== undefined);
    for (const pin of pins) this.drawSpot(brush, pin, true);
    this.stage.showPins(pins.map((pin) => sentence(this.said(pin))));
    const here = this.cell(this.model.get("pointed") ?? {});
    if (!here) return;
    this.drawSpot(brush, here, false);
    this.stage.readOut.say(this.said(here));
  }

  private drawSpot(brush: CanvasRenderingContext2D, cell: Cell, pinned: boolean): void {
    const { u, v } = this.ground(cell);
    const value = this.valueAt(cell);
    const height =
      value === undefined ? this.heights[blockOf(this.land!, cell)] : heightsOf(Float64Array.of(value), this.scale)[0];
    drawSpot(brush, [u, v], height, this.projection!, pinned, this.stage.theme);
  }

  /** The exact value of a cell: it stands for its block, is a named spike, or the kernel is asked. */
  private valueAt(cell: Cell): number | undefined {
    const land = this.land!;
    const block = blockOf(land, cell);
    if (same(cellOf(land, block), cell)) return land.values[block];
    const spike = this.spikes.find((one) => same(one.cell, cell));
    if (spike) return spike.value;
    const name = cell.join();
    if (!this.asked.has(name)) {
      this.asked.set(name, undefined);
      this.stage.kernel.ask({ ask: "cell", y: cell[0], x: cell[1] }, (_, [bytes]) => {
        this.asked.set(name, numbers(new Uint8Array(bytes.buffer, bytes.byteOffset, 8), "f8")[0]);
        this.mark();
      });
    }
    return this.asked.get(name);
  }

  private said(cell: Cell): Said {
    const { spec, land } = this;
    const value = this.valueAt(cell);
    const block = blockOf(land!, cell);
    const unit = spec.unit && ` ${spec.unit}`;
    const masked = this.masked?.[block] && same(cellOf(land!, block), cell) ? " (masked)" : "";
    // Without a kernel nobody knows more of this cell than what its block shows.
    const words = value === undefined ? `at most ±${short(Math.abs(land!.values[block]))}` : exact(value, spec.dtype);
    return [
      [spec.axes[0], this.name(0, cell[0], 40)],
      [spec.axes[1], this.name(1, cell[1], 40)],
      ["value", `${words}${unit}${masked}`],
    ];
  }

  /** The cell of a spot; another widget's spot may name one of our axes, or none. */
  private cell(spot: Spot): Cell | undefined {
    const { keys, shape } = this.spec;
    const found = keys.map((key, axis) => (spot[key] >= 0 && spot[key] < shape[axis] ? spot[key] : undefined));
    return found[0] === undefined || found[1] === undefined ? undefined : [found[0], found[1]];
  }

  private spot([row, column]: Cell): Spot {
    const { keys } = this.spec;
    return { [keys[0]]: row, [keys[1]]: column };
  }

  private cellAt({ x, y }: Point): Cell | undefined {
    if (!this.projection || !this.land) return undefined;
    const block = blockAt(this.land, this.heights, this.projection, x, y);
    return block === undefined ? undefined : cellOf(this.land, block);
  }

  private pointAt(cell: Cell | undefined): void {
    if (cell) this.stage.point(this.spot(cell));
  }

  private pinAt(cell: Cell | undefined): void {
    if (cell) this.stage.pin(this.spot(cell));
  }

  private turn(right: number, down: number): void {
    this.look(turned(this.camera, right, down));
  }

  private look({ yaw, pitch }: Camera): void {
    this.stage.slow.set("yaw", yaw);
    this.stage.slow.set("pitch", pitch);
  }

  act(act: Act): void {
    if (!this.land || !this.projection) return;
    const here = this.cell(this.model.get("pointed") ?? {});
    if (act.kind === "turn") this.turn(act.x, act.y);
    else if (act.kind === "reset") this.look(START);
    else if (act.kind === "move") this.step(here, -act.y, act.x);
    else if (act.kind === "home") this.step(here, 0, Number.NEGATIVE_INFINITY);
    else if (act.kind === "end") this.step(here, 0, Number.POSITIVE_INFINITY);
    else if (act.kind === "pin") this.pinAt(here);
    else if (act.kind === "copy") this.copyCsv();
    else if (act.kind === "peak" && this.spikes.length) {
      this.lastSpike = (this.lastSpike + 1) % this.spikes.length;
      this.pointAt(this.spikes[this.lastSpike].cell);
    } else if (act.kind === "clear") {
      this.stage.clear();
      this.lastSpike = -1;
      this.stage.wiped();
    }
  }

  /** From block to block: up is away from the reader while the scene is not turned round. */
  private step(here: Cell | undefined, up: number, right: number): void {
    const land = this.land!;
    const clamp = (value: number, count: number) => Math.min(Math.max(0, value), count - 1);
    const block = here ? blockOf(land, here) : 0;
    const [row, column] = here ? [Math.floor(block / land.columns), block % land.columns] : [0, 0];
    const next = clamp(row + up, land.rows) * land.columns + clamp(column + right, land.columns);
    this.pointAt(cellOf(land, here ? next : 0));
  }

  private copyCsv(): void {
    const { spec, land } = this;
    const label = (axis: 0 | 1, index: number) => spec.labels[spec.axes[axis]]?.[index] ?? index;
    const lines = Array.from(land!.values, (value, block) => {
      const [row, column] = cellOf(land!, block);
      return [row, label(0, row), column, label(1, column), Number(exact(value, spec.dtype))];
    });
    const head = spec.keys.flatMap((key) => [key, `${key} name`]);
    this.stage.copyText(csv([[...head, spec.unit || "value"], ...lines]));
  }
}

function same(a: Cell, b: Cell): boolean {
  return a[0] === b[0] && a[1] === b[1];
}

export default {
  render({ model, el }: Place<State>): () => void {
    const landscape = new Landscape(model, el);
    return () => landscape.stop();
  },
};
