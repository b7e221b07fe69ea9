/** A grid of numbers with named axes. Hover reads, click pins, drag pans, ctrl+wheel zooms. */

import type { BarSpec } from "../shared/bar.ts";
import { type Numbers, unpack } from "../shared/bytes.ts";
import { centreOf, type Range, rampFor, table } from "../shared/colours.ts";
import { copyPicture, copyText, fileName, flattened } from "../shared/copy.ts";
import { make, markReady, onceAFrame, onWidth, sized } from "../shared/dom.ts";
import { Kernel } from "../shared/kernel.ts";
import { type Act, hearKeys } from "../shared/keyboard.ts";
import { Listeners, type Model, patient, type Spot, toggled } from "../shared/model.ts";
import { exact } from "../shared/numbers.ts";
import { hearPointer, type Point } from "../shared/pointer.ts";
import { ReadOut, type Said, sentence } from "../shared/readout.ts";
import { csv } from "../shared/text.ts";
import { onTheme, type Theme, themeOf } from "../shared/theme.ts";
import { type Follow, fillControls } from "./controls.ts";
import { paint, pooled, showMasks } from "./draw.ts";
import { looksOf, maskLegend } from "./masks.ts";
import { Places } from "./places.ts";
import { type Axis, drawAround, drawMarks, drawNumbers, type Layout, layoutFor, sheet } from "./scene.ts";
import { Source, type Spec } from "./source.ts";
import { type Cell, cellAt, panned, revealing, seen, type View, whole, zoomed } from "./view.ts";
import { captionWords, valueWords, whereWords } from "./words.ts";

export interface State {
  spec: Spec;
  data: DataView;
  clip: string;
  frame: number;
  pointed: Spot;
  pinned: Spot[];
}

/** What another widget around the map does instead: its own click, its own outlined cells, more in the read-out. */
export interface Surroundings {
  /** What a click does, in words for the resting read-out and for the list of keys. */
  click: string;
  valueName: string;
  clicked(spot: Spot): void;
  outlined(): readonly Spot[];
  more(spot: Spot): Said;
  /** The numbers are here; those that belong to the other widget may be among them. */
  loaded(arrays: Record<string, Numbers>): void;
}

const KEYS = "arrows move, shift by ten, + - 0 zoom, p goes to the peak, c copies the visible cells";
const CSV_CELLS = 200_000;

export class Heatmap {
  private readonly listeners = new Listeners();
  private readonly map = make("canvas", { class: "act-map" });
  private readonly marks = make("canvas", { class: "act-marks", "aria-hidden": "true" });
  private readonly plot = make("div", { class: "act-plot", tabindex: "0", role: "application" }, this.map, this.marks);
  private readonly readOut: ReadOut;
  private readonly caption = make("div", { class: "act-caption" });
  private readonly legend = make("div", { class: "act-mask-legend" });
  private readonly check = make("div", { class: "act-check" });
  private readonly pinList = make("ul", { class: "act-pins", "aria-label": "pinned cells" });
  private readonly controls = make("div", { class: "act-controls" });
  private readonly title = make("div", { class: "act-title" });
  private readonly root = make("div", { class: "act act-heatmap" });
  readonly kernel: Kernel<State>;
  private readonly slow: ReturnType<typeof patient<State>>;
  private readonly redraw = onceAFrame(() => this.draw());
  private source: Source | undefined;
  private places = new Places([], []);
  private layout: Layout | undefined;
  private view: View | undefined;
  private cursor: Cell | undefined;
  private width = 0;
  private followFrame: Follow = () => {};
  private loads = 0;
  /** Cells pooled into one entry of what is on screen. */
  private steps: readonly [number, number] = [1, 1];

  constructor(
    private readonly model: Model<State>,
    el: HTMLElement,
    private readonly around?: Surroundings,
  ) {
    this.readOut = new ReadOut(`Hover or use the arrow keys; click ${this.around?.click ?? "pins"}.`);
    this.kernel = new Kernel(model, this.listeners);
    this.slow = patient(model);
    const under = [this.readOut.element, this.legend, this.caption, this.check, ...(around ? [] : [this.pinList])];
    this.root.append(this.title, this.controls, this.plot, ...under);
    el.append(this.root);
    onWidth(this.root, this.listeners, (width) => {
      this.width = width;
      this.arrange();
    });
    onTheme(this.listeners, this.redraw);
    this.listeners.to(model, "change:data", () => void this.load());
    this.listeners.to(model, "change:clip", this.redraw);
    this.listeners.to(model, "change:frame", () => this.newFrame());
    this.listeners.to(model, "change:pinned", () => this.showPins());
    this.listeners.to(model, "change:pointed", () => this.follow());
    this.hearPointer();
    hearKeys(this.plot, (act) => this.act(act));
    void this.load();
    this.kernel.ping(() => this.redraw());
  }

  stop(): void {
    this.slow.stop();
    this.listeners.stop();
    this.root.remove();
  }

  private get spec(): Spec {
    return this.source!.spec;
  }

  private get frame(): number {
    return this.model.get("frame");
  }

  private get range(): Range {
    return this.spec.ranges[this.model.get("clip")] ?? Object.values(this.spec.ranges)[0];
  }

  /** Decode what Python sent. The first time also builds the controls. */
  private async load(): Promise<void> {
    const spec = this.model.get("spec");
    const load = ++this.loads;
    const arrays = await unpack(this.model.get("data"), spec.arrays);
    // A newer payload may have come while this one was inflated.
    if (load !== this.loads) return;
    const first = !this.source;
    this.source = new Source(spec, arrays, this.kernel as unknown as Kernel<never>, this.redraw);
    this.places = new Places(spec.keys, spec.shape);
    this.around?.loaded(arrays);
    if (!first) return this.redraw();
    this.title.textContent = spec.title;
    const size = spec.axes.map((axis, at) => `${spec.shape[at]} ${axis}`).join(" by ");
    const keys = `${KEYS}, Enter ${this.around?.click ?? "pins"}`;
    this.plot.setAttribute("aria-label", `Heatmap ${spec.title}, ${size}; ${keys}`);
    this.legend.replaceChildren(...maskLegend(spec.masks));
    this.check.textContent = spec.check;
    this.fillControls();
    this.arrange();
    this.showPins();
  }

  private axes(): [Axis, Axis] {
    const { axes, shape, labels } = this.spec;
    const last = axes.length - 1;
    const axis = (at: number): Axis => ({ name: axes[at], count: shape[at], names: labels[axes[at]] });
    return [last > 0 ? axis(last - 1) : { name: "", count: 1 }, axis(last)];
  }

  private arrange(): void {
    if (!this.source || !this.width) return;
    const [rows, columns] = this.axes();
    const brush = this.map.getContext("2d")!;
    brush.font = `11px ${themeOf(this.root).font}`;
    this.layout = layoutFor(this.width, rows, columns, (words) => brush.measureText(words).width);
    this.view = whole(this.source, this.layout.plot);
    this.redraw();
  }

  private fillControls(): void {
    const { spec } = this;
    const leading = spec.axes
      .slice(0, -2)
      .map((name, at) => ({ name, count: spec.shape[at], names: spec.labels[name] }));
    this.followFrame = fillControls(this.controls, leading, spec.ranges, this.model.get("clip"), {
      slice: (axis, index) => this.slow.set("frame", this.places.moved(this.frame, axis, index)),
      range: (name) => this.slow.set("clip", name),
      act: (act) => this.act(act),
      picture: () => void this.copyPng(),
    });
    this.followFrame(this.places.leading(this.frame));
  }

  private newFrame(): void {
    if (!this.source) return;
    this.followFrame(this.places.leading(this.frame));
    this.redraw();
  }

  private draw(): void {
    if (!this.source || !this.layout || !this.view) return;
    const density = devicePixelRatio || 1;
    const theme = themeOf(this.root);
    const brush = sized(this.map, this.layout.width, this.layout.height, density);
    brush.font = `11px ${theme.font}`;
    const ramp = rampFor(this.range, theme.dark);
    if (this.source.has(this.frame)) this.drawCells(brush, density, theme);
    const bar: BarSpec = { ramp, range: this.range, data: this.spec.data };
    drawAround(brush, this.layout, this.view, this.axes(), bar, theme);
    sized(this.marks, this.layout.width, this.layout.height, density);
    this.drawCursor();
    this.sayCaption();
    markReady(this.root);
  }

  private drawCells(brush: CanvasRenderingContext2D, density: number, theme: Theme): void {
    const [source, view, { plot }] = [this.source!, this.view!, this.layout!];
    const ramp = rampFor(this.range, theme.dark);
    const coded = this.spec.exact ? this.range : this.spec.coded;
    const colours = table(ramp, theme.dark ? [72, 72, 76] : [150, 150, 150], coded, this.range);
    const picture = brush.createImageData(Math.round(plot.width * density), Math.round(plot.height * density));
    const sheet = { words: new Uint32Array(picture.data.buffer), width: picture.width, height: picture.height };
    const fine: View = { x: view.x, y: view.y, sx: view.sx * density, sy: view.sy * density };
    const region = seen(view, source, plot);
    const { layers, steps } = source.finer(this.frame, fine, region);
    this.steps = steps;
    for (const layer of [source.base(this.frame, this.range), ...layers])
      paint(sheet, fine, layer, colours, centreOf(coded));
    const bits = source.maskBits(this.frame);
    if (bits) showMasks(sheet, fine, source, bits, looksOf(this.spec.masks), density);
    brush.putImageData(picture, Math.round(plot.x * density), Math.round(plot.y * density));
    // Numbers and lines over each other read badly: what the mask says is enough.
    const bare = ([row, column]: Cell) => !bits?.[row * source.columns + column];
    const shown = (cell: Cell) => (bare(cell) ? source.exactAt(this.frame, cell)! : Number.NaN);
    if (this.spec.exact) drawNumbers(brush, plot, view, source, ramp, this.range, shown);
  }

  private drawCursor(): void {
    if (!this.layout || !this.view || !this.source) return;
    const brush = this.marks.getContext("2d")!;
    brush.clearRect(0, 0, this.layout.width, this.layout.height);
    const outlined = this.around?.outlined() ?? this.model.get("pinned") ?? [];
    const pins = outlined.flatMap((pin) => (this.places.onFrame(pin, this.frame) ? [this.places.cell(pin)!] : []));
    drawMarks(brush, this.layout.plot, this.view, this.cursor, pins);
    if (this.cursor) this.readOut.say(this.said(this.frame, this.cursor));
  }

  private sayCaption(): void {
    const { spec } = this;
    this.caption.textContent = captionWords(spec, {
      range: this.range,
      pooled: pooled(this.view!, this.steps),
      coarse: !spec.exact && this.steps === spec.steps,
      here: this.source!.has(this.frame),
      alive: this.kernel.alive,
    });
  }

  private said(frame: number, cell: Cell): Said {
    const spot = this.places.spot(frame, cell);
    const value = valueWords(this.source!, frame, cell, this.range);
    const where = whereWords(this.spec, Object.values(spot));
    return [...where, [this.around?.valueName ?? "value", value], ...(this.around?.more(spot) ?? [])];
  }

  private showPins(): void {
    if (!this.source) return;
    const lines = (this.model.get("pinned") ?? []).flatMap((pin) => {
      const cell = this.places.cell(pin);
      return cell ? [make("li", {}, sentence(this.said(this.places.frameOf(pin), cell)))] : [];
    });
    this.pinList.replaceChildren(...lines);
    this.drawCursor();
  }

  private point(cell: Cell | undefined): void {
    if (cell?.[0] === this.cursor?.[0] && cell?.[1] === this.cursor?.[1]) return;
    this.cursor = cell;
    if (cell) this.slow.set("pointed", this.places.spot(this.frame, cell));
    this.drawCursor();
  }

  /** Another widget pointed somewhere: go there along the axes we share. */
  private follow(): void {
    if (!this.source) return;
    const here = this.cursor ? this.places.spot(this.frame, this.cursor) : this.places.spot(this.frame, [0, 0]);
    const spot = this.places.following(here, this.model.get("pointed") ?? {});
    const [cell, frame] = [this.places.cell(spot), this.places.frameOf(spot)];
    if (cell && cell[0] < this.source.rows && cell[1] < this.source.columns) this.cursor = cell;
    if (frame !== this.frame && this.spec.keys.some((key) => key in this.model.get("pointed")))
      this.model.set("frame", frame);
    this.drawCursor();
  }

  private pin(cell: Cell | undefined): void {
    if (!cell) return;
    const spot = this.places.spot(this.frame, cell);
    if (this.around) this.around.clicked(spot);
    else {
      this.model.set("pinned", toggled(this.model.get("pinned") ?? [], spot));
      this.model.save_changes();
    }
  }

  private act(act: Act): void {
    if (!this.source || !this.layout || !this.view) return;
    const { plot } = this.layout;
    const [row, column] = this.cursor ?? [0, 0];
    const middle = this.cursor
      ? { x: (column + 0.5 - this.view.x) * this.view.sx, y: (row + 0.5 - this.view.y) * this.view.sy }
      : { x: plot.width / 2, y: plot.height / 2 };
    if (act.kind === "move") this.step(act.y, act.x);
    else if (act.kind === "home" || act.kind === "end") this.step(0, act.kind === "home" ? -Infinity : Infinity);
    else if (act.kind === "zoom") this.show(zoomed(this.view, act.by, middle, this.source, plot));
    else if (act.kind === "reset") this.show(whole(this.source, plot));
    else if (act.kind === "pin") this.pin(this.cursor);
    else if (act.kind === "copy") this.copyCsv();
    else if (act.kind === "clear") this.clear();
    else if (act.kind === "peak") this.goTo(this.spec.peak);
  }

  private clear(): void {
    this.point(undefined);
    this.readOut.clear();
  }

  private step(down: number, right: number): void {
    const clamp = (value: number, count: number) => Math.min(Math.max(0, value), count - 1);
    const from = this.cursor ?? [down > 0 ? -1 : 0, right > 0 ? -1 : 0];
    const cell: Cell = [clamp(from[0] + down, this.source!.rows), clamp(from[1] + right, this.source!.columns)];
    this.view = revealing(this.view!, cell, this.source!, this.layout!.plot);
    this.point(cell);
    this.redraw();
  }

  /** Names of the masks that cover a place. */
  masks(spot: Spot): string[] {
    const cell = this.places.cell(spot);
    return cell && this.source ? this.source.masksAt(this.places.frameOf(spot), cell) : [];
  }

  /** A place in words, without its value: `layer 3 · position 7 “Anna”`. */
  words(spot: Spot): string {
    const cell = this.places.cell(spot);
    return cell && this.source
      ? sentence(this.said(this.places.frameOf(spot), cell).slice(0, this.spec.axes.length))
      : "";
  }

  tell(words: string): void {
    this.readOut.tell(words);
  }

  /** Draw cursor and outlines again: what surrounds the map knows something new. */
  refresh(): void {
    this.drawCursor();
  }

  /** Move the cursor to a place on whatever slice it is, as if it were pointed at. */
  goTo(spot: Spot): void {
    const cell = this.places.cell(spot);
    if (!cell) return;
    this.slow.set("frame", this.places.frameOf(spot));
    this.view = revealing(this.view!, cell, this.source!, this.layout!.plot);
    this.cursor = undefined;
    this.point(cell);
    this.redraw();
  }

  private show(view: View): void {
    this.view = view;
    this.redraw();
  }

  private copyCsv(): void {
    const region = seen(this.view!, this.source!, this.layout!.plot);
    const count = (region.bottom - region.top) * (region.right - region.left);
    const heard = (value: (row: number, column: number) => number) => {
      const read = (row: number, column: number) => Number(exact(value(row, column), this.spec.dtype));
      const words = csv(sheet(this.axes(), region, read));
      void copyText(words, fileName(this.spec.title)).then((done) => this.readOut.tell(done));
    };
    if (count > CSV_CELLS) this.readOut.tell(`${count} cells are too many to copy; zoom in, or use result.to_frame().`);
    else if (!this.source!.values(this.frame, region, heard)) this.readOut.tell("Exact values need a running kernel.");
  }

  private async copyPng(): Promise<void> {
    const picture = flattened([this.map, this.marks], themeOf(this.root).dark ? "#111" : "#fff");
    this.readOut.tell(await copyPicture(picture, fileName(this.spec.title)));
  }

  private hearPointer(): void {
    const cell = ({ x, y }: Point): Cell | undefined => {
      if (!this.view || !this.source || !this.layout) return undefined;
      const { plot } = this.layout;
      const on = x >= plot.x && y >= plot.y && x < plot.x + plot.width && y < plot.y + plot.height;
      return on ? cellAt(this.view, x - plot.x, y - plot.y, this.source) : undefined;
    };
    hearPointer(this.plot, {
      hover: (point) => this.point(cell(point) ?? this.cursor),
      click: (point) => this.pin(cell(point)),
      drag: (dx, dy) => this.view && this.show(panned(this.view, dx, dy, this.source!, this.layout!.plot)),
      zoom: (by, { x, y }) => {
        if (!this.view || !this.layout || !this.source) return;
        const { plot } = this.layout;
        this.show(zoomed(this.view, by, { x: x - plot.x, y: y - plot.y }, this.source, plot));
      },
    });
  }
}
