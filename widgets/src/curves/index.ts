/** Curves: lines, bands and bars over one x. Hover reads every curve, click pins, the legend takes curves away. */

import "./style.css";
import { type ArrayEntry, type Dtype, type Numbers, unpack } from "../shared/bytes.ts";
import { choice, make, sized } from "../shared/dom.ts";
import type { Act } from "../shared/keyboard.ts";
import type { Model, Place } from "../shared/model.ts";
import { exact, short } from "../shared/numbers.ts";
import { hearPointer, type Point } from "../shared/pointer.ts";
import { type Said, sentence } from "../shared/readout.ts";
import { extentOf, scaleFor } from "../shared/scale.ts";
import { type Scene, Stage } from "../shared/stage.ts";
import { csv, cut, visible } from "../shared/text.ts";
import {
  barAt,
  barEnds,
  type Curve,
  type Form,
  type Layout,
  layoutFor,
  nearestCurve,
  nearestPoint,
  peakOf,
  placeOf,
  placeX,
  placeY,
  withGround,
} from "./draw.ts";
import { type Axes, drawAxes, drawCurve, drawSample, offAxis, penOf, ring, rule, tickWords, yTicks } from "./paint.ts";
import { picture } from "./picture.ts";

interface Spec {
  title: string;
  unit: string;
  check: string;
  x_label: string;
  /** What `pointed` calls a place on x. */
  key: string;
  names: string[] | null;
  curves: string[];
  dtypes: Record<string, Dtype>;
  /** Do bars stand around their x, rather than begin there? */
  centred: boolean;
  whole: boolean;
  total: number;
  unplaced: number;
  arrays: ArrayEntry[];
}
/** Index on x under the name of that axis, and the name of the curve. */
type Spot = Record<string, number | string>;
interface State {
  spec: Spec;
  data: DataView;
  shown: number[];
  form: Form;
  x_scale: string;
  y_scale: string;
  pointed: Spot;
  pinned: Spot[];
}
/** Curve by its place in the legend, point by its place among those that are here. */
interface Cell {
  curve: number;
  at: number;
}

const KEYS =
  "left and right move along the curve, up and down change the curve, Home and End go to its ends, p to its largest value, " +
  "Enter pins, c copies CSV, 0 shows every curve on even axes";
type Choice = "form" | "x_scale" | "y_scale";
const FORMS: Form[] = ["lines", "bars"];
const SCALES = ["linear", "log"];

class Curves implements Scene {
  private readonly legend = make("div", { class: "act-curves-legend", role: "group", "aria-label": "curves" });
  private readonly stage: Stage<State>;
  private x: Numbers = new Float64Array();
  private indices: Numbers | undefined;
  private curves: Curve[] = [];
  private values: HTMLElement[] = [];
  /** What brings each list of choices up to date. */
  private readonly lists = new Map<Choice, () => void>();
  private layout: Layout | undefined;
  private axes: Axes | undefined;
  /** Where each point stands on the screen: its x, or the left end of its bar. */
  private places: number[] = [];

  constructor(
    private readonly model: Model<State>,
    el: HTMLElement,
  ) {
    const words = { kind: "curves", rest: "Hover or use the arrow keys; click pins.", pins: "pinned points" };
    this.stage = new Stage(model, el, words, this.legend);
    // The legend belongs to the picture, so it stands above what is said about one point.
    this.stage.plot.after(this.legend);
    this.stage.start(this, ["shown", "form", "x_scale", "y_scale"]);
    hearPointer(this.stage.plot, {
      hover: (point) => this.pointAt(this.cellAt(point)),
      click: (point) => this.pinAt(this.cellAt(point)),
      drag: () => {},
    });
  }

  stop(): void {
    this.stage.stop();
  }

  private get spec(): Spec {
    return this.model.get("spec");
  }

  private get form(): Form {
    return this.model.get("form");
  }

  private get shown(): number[] {
    return (this.model.get("shown") ?? []).filter((curve) => curve in this.curves);
  }

  async load(): Promise<void> {
    const { spec } = this;
    const arrays = await unpack(this.model.get("data"), spec.arrays);
    this.x = arrays.x;
    this.indices = arrays.index;
    this.curves = spec.curves.map((name, at) => ({
      name,
      values: arrays[`curve ${at}`],
      band: arrays[`band ${at}`],
    }));
    const size = `${spec.curves.length} curves over ${spec.total} points of ${spec.x_label || "x"}`;
    this.stage.name(`Curves ${spec.title}, ${size}; ${KEYS}`);
    this.fillControls();
    this.fillLegend();
    this.stage.redraw();
  }

  private fillControls(): void {
    this.lists.clear();
    const pick = (trait: Choice, options: readonly string[]) => {
      const label = choice(trait.replace("_", " "), options, 0, (index) => {
        this.model.set(trait, options[index] as never);
        this.model.save_changes();
      });
      const list = label.querySelector("select")!;
      this.lists.set(trait, () => {
        list.selectedIndex = Math.max(0, options.indexOf(this.model.get(trait)));
      });
      return label;
    };
    const bends = (lines: readonly Numbers[]) => {
      const { low, high, least } = extentOf(lines);
      return least > 0 && low < high;
    };
    this.stage.controls.replaceChildren(
      pick("form", FORMS),
      ...(!this.spec.names && bends([this.x]) ? [pick("x_scale", SCALES)] : []),
      ...(bends(this.curves.map(({ values }) => values)) ? [pick("y_scale", SCALES)] : []),
      this.stage.copies(
        () => this.picture(),
        () => this.copyCsv(),
      ),
    );
  }

  /** One button per curve: its line, its name, and its value where the reader points. */
  private fillLegend(): void {
    this.values = this.curves.map(() => make("span", { class: "act-curve-value" }));
    const buttons = this.curves.map(({ name }, curve) => {
      const sample = make("canvas", { "aria-hidden": "true" });
      const made = make(
        "button",
        { type: "button", class: "act-curve", title: "Show or hide; with shift, show this curve alone" },
        sample,
        make("span", { class: "act-curve-name" }, cut(visible(name), 40)),
        this.values[curve],
      );
      made.addEventListener("click", (event) => this.toggle(curve, event.shiftKey));
      return made;
    });
    this.legend.replaceChildren(...buttons);
  }

  private toggle(curve: number, alone: boolean): void {
    const { shown } = this;
    const others = shown.filter((other) => other !== curve);
    const all = this.curves.map((_, at) => at);
    if (alone) this.show(others.length || !shown.length ? [curve] : all);
    else this.show(others.length < shown.length ? others : all.filter((at) => at === curve || shown.includes(at)));
  }

  private show(curves: number[]): void {
    this.model.set("shown", curves);
    this.model.save_changes();
  }

  draw(): void {
    if (!this.curves.length) return;
    const { stage, spec, shown, form } = this;
    for (const follow of this.lists.values()) follow();
    const theme = stage.theme;
    this.axes = this.axesFor();
    const ruler = stage.base.getContext("2d")!;
    ruler.font = `11px ${theme.font}`;
    // Ticks need a height, and their words decide the width; the height depends on neither.
    const rough = layoutFor(stage.width - 4, 0);
    const labels = yTicks(this.axes.y, rough.plot.height).map((tick) => ruler.measureText(tickWords(tick)).width);
    this.layout = layoutFor(stage.width - 4, Math.max(0, ...labels));
    const { plot } = this.layout;
    const brush = stage.resize(this.layout.width, this.layout.height);
    drawAxes(brush, this.layout, this.axes, theme);
    for (const curve of shown)
      drawCurve(brush, plot, this.axes, this.x, this.curves[curve], penOf(curve, theme), form, spec.centred);
    const from = form === "bars" ? barEnds(this.x, spec.centred).map(([left]) => left) : this.x;
    this.places = Array.from(from, (value) => placeX(this.axes!.x, plot, value));
    this.drawSamples();
    this.sayCaption();
    this.mark();
    stage.ready();
  }

  private axesFor(): Axes {
    const { spec, form } = this;
    const lines = this.shown.map((curve) => this.curves[curve]);
    const drawn = lines.flatMap(({ values, band }) => (band ? [values, band] : [values]));
    const ends = form === "bars" ? [Float64Array.from(barEnds(this.x, spec.centred).flat())] : [this.x];
    const log = this.model.get("y_scale") === "log";
    // Half a bar may reach below 0 where no x does; a log axis is about the x themselves.
    const across = this.model.get("x_scale") === "log" ? [this.x] : ends;
    return {
      x: scaleFor(extentOf(across), this.model.get("x_scale") === "log" && !spec.names, form === "bars" ? 0 : 0.02),
      // A logarithm has no ground: 0 would only take room.
      y: log ? scaleFor(extentOf(drawn), true) : scaleFor(withGround(extentOf(drawn), form), false),
      names: spec.names ?? undefined,
      whole: spec.whole,
      xLabel: spec.x_label,
      unit: spec.unit,
    };
  }

  private drawSamples(): void {
    const { theme } = this.stage;
    [...this.legend.children].forEach((made, curve) => {
      made.setAttribute("aria-pressed", String(this.shown.includes(curve)));
      drawSample(sized(made.querySelector("canvas")!, 26, 10, devicePixelRatio || 1), 1, 5, 24, penOf(curve, theme));
    });
  }

  private sayCaption(): void {
    const { spec, form, axes } = this;
    const lines = this.shown.map((curve) => this.curves[curve]);
    const some = (test: (value: number) => boolean) => lines.some(({ values }) => values.some(test));
    const notes: string[] = [];
    if (!lines.length) notes.push("no curve is shown: choose one in the legend");
    if (lines.some(({ band }) => band)) notes.push(form === "bars" ? "strokes: intervals" : "bands: intervals");
    if (form === "bars") notes.push(spec.centred ? "bars stand around their x" : "each bar begins at its x");
    for (const [name, scale] of Object.entries({ x: axes!.x, y: axes!.y })) {
      if (scale.kind === "log") notes.push(`${name}: logarithmic`);
      if (scale.kind === "symlog")
        notes.push(`${name}: logarithmic, linear within ±${short(scale.knee)}, for it holds 0 or negative numbers`);
    }
    if (some(Number.isNaN)) notes.push("gaps: missing values");
    if (some((value) => !Number.isFinite(value) && !Number.isNaN(value))) notes.push("infinite values are not drawn");
    if (this.x.length + spec.unplaced < spec.total)
      notes.push(`${this.x.length} of ${spec.total} points: of each stretch the lowest and highest of every curve`);
    if (spec.unplaced) notes.push(`${spec.unplaced} points without a finite x are left out`);
    this.stage.caption.textContent = notes.join(" · ");
  }

  /** Rings at the pointed and pinned places, every curve's value in the legend, and the pointed one in words. */
  mark(): void {
    if (!this.layout || !this.curves.length) return;
    const brush = this.stage.wiped();
    const pins = (this.model.get("pinned") ?? []).flatMap((pin) => this.cell(pin) ?? []);
    for (const pin of pins) this.drawMark(brush, pin, true);
    this.stage.showPins(pins.map((pin) => sentence(this.said(pin))));
    const here = this.cell(this.model.get("pointed") ?? {});
    if (here) this.drawMark(brush, here, false);
    this.sayValues(here);
    if (here) this.stage.readOut.say(this.said(here));
  }

  private drawMark(brush: CanvasRenderingContext2D, { curve, at }: Cell, pinned: boolean): void {
    const { theme } = this.stage;
    const { plot } = this.layout!;
    const x = this.middle(at);
    if (!Number.isFinite(x) || x < plot.x - 6 || x > plot.x + plot.width + 6) return;
    rule(brush, x, plot.y, x, plot.y + plot.height, theme.muted, pinned ? 0.5 : 0.9);
    for (const other of pinned ? [curve] : this.shown) {
      const value = this.curves[other].values[at];
      if (!Number.isFinite(value) || offAxis(this.axes!.y, value) || !this.shown.includes(other)) continue;
      const y = placeY(this.axes!.y, plot, value);
      const { colour } = penOf(other, theme);
      if (other === curve) ring(brush, x, y, colour, pinned);
      else {
        brush.fillStyle = colour;
        brush.fillRect(x - 3, y - 3, 6, 6);
      }
    }
  }

  /** Where a point is marked: on its x, or in the middle of its bar. */
  private middle(at: number): number {
    const { plot } = this.layout!;
    if (this.form === "lines") return this.places[at];
    const right = placeX(this.axes!.x, plot, barEnds(this.x, this.spec.centred)[at][1]);
    return (Math.max(plot.x, this.places[at]) + right) / 2;
  }

  private sayValues(here: Cell | undefined): void {
    this.curves.forEach(({ values }, curve) => {
      this.values[curve].textContent = here ? short(values[here.at]) : "";
      this.legend.children[curve].classList.toggle("act-here", here?.curve === curve);
    });
  }

  private said({ curve, at }: Cell): Said {
    const { spec } = this;
    const { name, values, band } = this.curves[curve];
    const place = spec.names ? visible(spec.names[this.x[at]]) : String(Number(this.x[at].toPrecision(10)));
    const ends = band ? [short(band[at]), short(band[at + this.x.length])] : [];
    const unit = spec.unit && ` ${spec.unit}`;
    return [
      [visible(spec.x_label || "x"), place],
      ...(band ? [["interval", ends.join(" to ")] as const] : []),
      [cut(visible(name), 80), `${exact(values[at], spec.dtypes[`curve ${curve}`])}${unit}`],
    ];
  }

  /** What a spot of ours or of another widget names here: one that names no curve keeps to the current one. */
  private cell(spot: Spot): Cell | undefined {
    const index = spot[this.spec.key];
    if (typeof index !== "number" || index < 0 || index >= this.spec.total) return undefined;
    const named = spot.curve === undefined ? (this.shown[0] ?? 0) : this.spec.curves.indexOf(String(spot.curve));
    return named < 0 ? undefined : { curve: named, at: placeOf(this.indices, this.x.length, index) };
  }

  private spot({ curve, at }: Cell): Spot {
    return { [this.spec.key]: this.indices ? this.indices[at] : at, curve: this.spec.curves[curve] };
  }

  private cellAt({ x, y }: Point): Cell | undefined {
    const { shown, layout } = this;
    if (!layout || !shown.length || y > layout.plot.y + layout.plot.height + 8) return undefined;
    const at = (this.form === "bars" ? barAt : nearestPoint)(this.places, x);
    const heights = shown.map((curve) => placeY(this.axes!.y, layout.plot, this.curves[curve].values[at]));
    return { curve: shown[nearestCurve(heights, y) ?? 0], at };
  }

  private pointAt(cell: Cell | undefined): void {
    if (cell) this.stage.point(this.spot(cell));
  }

  private pinAt(cell: Cell | undefined): void {
    if (cell) this.stage.pin(this.spot(cell));
  }

  act(act: Act): void {
    const { shown } = this;
    if (!this.layout || !this.curves.length) return;
    const here = this.cell(this.model.get("pointed") ?? {});
    if (act.kind === "clear") {
      this.stage.clear();
      this.mark();
    } else if (act.kind === "copy") this.copyCsv();
    else if (act.kind === "reset") this.reset();
    else if (act.kind === "pin") this.pinAt(here);
    else if (!shown.length) return;
    else if (act.kind === "move") this.pointAt(this.stepped(here, act.x, act.y));
    else if (act.kind === "home") this.pointAt({ curve: here?.curve ?? shown[0], at: 0 });
    else if (act.kind === "end") this.pointAt({ curve: here?.curve ?? shown[0], at: this.x.length - 1 });
    else if (act.kind === "peak") {
      const curve = here?.curve ?? shown[0];
      this.pointAt({ curve, at: peakOf(this.curves[curve].values) });
    }
  }

  /** Right by points, down by curves of the legend. */
  private stepped(here: Cell | undefined, right: number, down: number): Cell {
    const { shown } = this;
    if (!here) return { curve: shown[0], at: right < 0 ? this.x.length - 1 : 0 };
    const clamp = (value: number, count: number) => Math.min(Math.max(0, value), count - 1);
    const row = clamp(Math.max(0, shown.indexOf(here.curve)) + Math.sign(down), shown.length);
    return { curve: shown[row], at: clamp(here.at + right, this.x.length) };
  }

  private reset(): void {
    this.model.set("x_scale", "linear");
    this.model.set("y_scale", "linear");
    this.show(this.curves.map((_, at) => at));
  }

  private copyCsv(): void {
    const { spec } = this;
    const lines = this.shown.map((curve) => ({ ...this.curves[curve], curve }));
    const head = lines.flatMap(({ name, band }) => [name, ...(band ? [`${name} low`, `${name} high`] : [])]);
    const read = (value: number, array: string) => Number(exact(value, spec.dtypes[array]));
    const body = Array.from(this.x, (x, at) => [
      spec.names ? spec.names[x] : read(x, "x"),
      ...lines.flatMap(({ values, band, curve }) => [
        read(values[at], `curve ${curve}`),
        ...(band ? [band[at], band[at + this.x.length]].map((end) => read(end, `band ${curve}`)) : []),
      ]),
    ]);
    this.stage.copyText(csv([[spec.x_label || "x", ...head], ...body]));
  }

  private picture(): HTMLCanvasElement {
    const { stage, spec } = this;
    const rows = this.shown.map((curve) => ({ name: spec.curves[curve], pen: penOf(curve, stage.theme) }));
    return picture(spec.title, [stage.base, stage.marks], rows, stage.caption.textContent ?? "", stage.theme);
  }
}

export default {
  render({ model, el }: Place<State>): () => void {
    const curves = new Curves(model, el);
    return () => curves.stop();
  },
};
