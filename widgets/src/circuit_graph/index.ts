/** CircuitGraph: a circuit from its embeddings up. The slider prunes, pointing reads, a click pins. */

import "./style.css";
import { type ArrayEntry, type Dtype, type Numbers, unpack } from "../shared/bytes.ts";
import { signColours } from "../shared/colours.ts";
import { flattened } from "../shared/copy.ts";
import { make, sized, slider } from "../shared/dom.ts";
import type { Act } from "../shared/keyboard.ts";
import type { Model, Place, Spot as Pointed } from "../shared/model.ts";
import { exact, short } from "../shared/numbers.ts";
import { type Said, sentence } from "../shared/readout.ts";
import { type Scene, Stage } from "../shared/stage.ts";
import { csv, visible } from "../shared/text.ts";
import {
  arranged,
  type Drawing,
  edgesAt,
  type Net,
  nodeAt,
  nodesOf,
  pruned,
  rowMarks,
  type Spot,
  stepped,
  stopAt,
  stopsOf,
  usefulStops,
} from "./draw.ts";
import { drawEdges, drawKind, drawLayers, drawNodes, KINDS, labelled, outline, type Words } from "./paint.ts";

interface Spec {
  title: string;
  unit: string;
  nodes: string[];
  columns: Partial<Record<"kind" | "readout" | "layer", string[]>>;
  start: number;
  check: string;
  dtypes: Record<string, Dtype>;
  arrays: ArrayEntry[];
}
interface State {
  spec: Spec;
  data: DataView;
  threshold: number;
  pointed: Pointed;
  pinned: Pointed[];
}

const KEYS =
  "arrows walk the nodes, + and - raise and lower the threshold, 0 returns to the first one, Enter pins, c copies the edges";
const GUTTER = 34;
const LISTED = 6;
const MOST_LINES = 5000;
/** How much of the rest is seen while a node is pointed at, as the stylesheet has it. */
const PALE = 0.22;

class CircuitGraph implements Scene {
  private readonly around = make("div", { class: "act-around" });
  private readonly count = make("output", { class: "act-output", "aria-live": "polite" });
  private readonly legend = make("div", { class: "act-circuit-legend" });
  private readonly stage: Stage<State>;
  private arrays: Record<string, Numbers> | undefined;
  private stops: number[] = [0];
  private strongest = 1;
  private kept: number[] = [];
  private drawing: Drawing = { spots: [], rows: [], width: 0, height: 0 };
  private bar: HTMLInputElement | undefined;
  /** Is the mouse or the keyboard on the drawing? Elsewhere what was pointed at stays known, but the rest gets its colours back. */
  private attended = false;

  constructor(
    private readonly model: Model<State>,
    el: HTMLElement,
  ) {
    const words = {
      kind: "circuit",
      rest: "Point at a node or use the arrow keys; click pins.",
      pins: "pinned nodes",
    };
    this.stage = new Stage(model, el, words, this.around, this.legend);
    this.stage.listeners.to(model, "change:threshold", () => this.prune());
    this.hearPointer();
    this.stage.start(this, []);
  }

  stop(): void {
    this.stage.stop();
  }

  private get spec(): Spec {
    return this.model.get("spec");
  }

  private get marksOf() {
    return rowMarks(this.spec.nodes, this.spec.columns.layer);
  }

  private get net(): Net & { values: Numbers } {
    return { count: this.spec.nodes.length, edges: this.arrays!.edges, values: this.arrays!.values };
  }

  private get words(): Words {
    const { nodes, columns } = this.spec;
    return { nodes, kinds: columns.kind, marks: this.marksOf?.marks };
  }

  async load(): Promise<void> {
    const { spec } = this;
    this.arrays = await unpack(this.model.get("data"), spec.arrays);
    const stops = stopsOf(this.arrays.values);
    this.strongest = stops[stops.length - 1] || 1;
    this.stops = usefulStops(this.net, stops);
    const size = `${spec.nodes.length} nodes, ${this.arrays.values.length} edges`;
    this.stage.name(`Circuit ${spec.title}, ${size}; ${KEYS}`);
    this.fillControls();
    this.prune();
  }

  private fillControls(): void {
    const last = this.stops.length - 1;
    const say = (step: number) => `≥ ${short(this.stops[step])}`;
    const label = slider("|weight|", [0, last], stopAt(this.stops, this.model.get("threshold")), say, (step) =>
      this.stage.slow.set("threshold", this.stops[step]),
    );
    this.bar = label.querySelector("input")!;
    const copies = this.stage.copies(
      () => this.picture(),
      () => this.copyCsv(),
    );
    this.stage.controls.replaceChildren(label, this.count, copies);
  }

  /** Leave what the threshold leaves, and say how much that is. */
  private prune(): void {
    if (!this.arrays || !this.bar) return;
    const threshold = this.model.get("threshold");
    this.kept = pruned(this.net, threshold);
    const step = stopAt(this.stops, threshold);
    this.bar.value = String(step);
    this.bar.parentElement!.querySelector("output")!.textContent = `≥ ${short(threshold)}`;
    const nodes = nodesOf(this.net, this.kept).length;
    this.count.textContent = `${this.kept.length} of ${this.arrays.values.length} edges, ${nodes} of ${this.spec.nodes.length} nodes`;
    this.stage.redraw();
  }

  draw(): void {
    if (!this.arrays) return;
    const { theme, width } = this.stage;
    const gutter = this.marksOf ? GUTTER : 6;
    const bare = arranged(nodesOf(this.net, this.kept), this.arrays.rows, width - 4, gutter);
    const brush = this.stage.resize(bare.width, bare.height);
    this.drawing = labelled(brush, bare, this.words, theme);
    drawEdges(brush, this.drawing, this.net, this.lines(), this.strongest, theme);
    drawNodes(brush, this.drawing, this.words, theme);
    drawLayers(brush, this.drawing, this.words, theme);
    this.sayLegend();
    this.mark();
    this.stage.ready();
  }

  /** The edges that get a line. Every node stays; of very many edges only the largest could be told apart. */
  private lines(): readonly number[] {
    if (this.kept.length <= MOST_LINES) return this.kept;
    const size = (edge: number) => Math.abs(this.net.values[edge]);
    return [...this.kept].sort((a, b) => size(b) - size(a)).slice(0, MOST_LINES);
  }

  /** Pointed and pinned nodes with their edges, over a paler rest; and what is pointed at in words. */
  mark(): void {
    if (!this.arrays) return;
    const here = this.model.get("pointed")?.node;
    const pins = (this.model.get("pinned") ?? []).map(({ node }) => node).filter((node) => this.exists(node));
    const shown = this.drawing.spots.filter(({ node }) => (this.attended && node === here) || pins.includes(node));
    this.stage.base.classList.toggle("act-pale", shown.length > 0);
    const brush = this.stage.wiped();
    const { theme } = this.stage;
    const edges = shown.flatMap(({ node }) => [...this.edges(node, 1), ...this.edges(node, 0)]);
    drawEdges(brush, this.drawing, this.net, edges, this.strongest, theme);
    const touched = new Set([...nodesOf(this.net, edges), ...shown.map(({ node }) => node)]);
    drawNodes(brush, this.drawing, this.words, theme, touched);
    for (const spot of shown) outline(brush, spot, pins.includes(spot.node));
    this.stage.showPins(pins.map((node) => sentence(this.said(node))));
    if (!this.exists(here)) return;
    this.stage.readOut.say(this.said(here));
    this.around.replaceChildren(this.sideList("from", here, 1), this.sideList("to", here, 0));
    // Lists of other lengths must not push the page about.
    this.around.style.minHeight = `${Math.max(this.around.offsetHeight, Number.parseFloat(this.around.style.minHeight) || 0)}px`;
  }

  private exists(node: number | undefined): node is number {
    return node !== undefined && node >= 0 && node < this.spec.nodes.length;
  }

  private edges(node: number, side: 0 | 1): number[] {
    return edgesAt(this.net, this.kept, node, side);
  }

  private said(node: number): Said {
    const { nodes, columns, unit, dtypes } = this.spec;
    const plural = (count: number) => `${count} ${count === 1 ? "edge" : "edges"}`;
    // A name tells its block already.
    const layer = this.marksOf?.word === "layer" ? [["layer", this.marksOf.marks[node]] as const] : [];
    const readout = columns.readout?.[node];
    const gone = this.drawing.spots.some((spot) => spot.node === node)
      ? []
      : [["pruned", "at this threshold"] as const];
    const weights = this.arrays!.weights;
    return [
      ["node", visible(nodes[node])],
      ...(columns.kind ? [["kind", columns.kind[node]] as const] : []),
      ...layer,
      ...gone,
      ["in", plural(this.edges(node, 1).length)],
      ["out", plural(this.edges(node, 0).length)],
      ...(readout ? [["writes", `“${visible(readout)}”`] as const] : []),
      ...(weights ? [["weight", `${exact(weights[node], dtypes.weights)}${unit && ` ${unit}`}`] as const] : []),
    ];
  }

  /** The largest edges on one side of a node. */
  private sideList(word: string, node: number, side: 0 | 1): HTMLElement {
    const edges = this.edges(node, side);
    const { below, above } = signColours(this.stage.theme.dark);
    const lines = edges.slice(0, LISTED).map((edge) => {
      const value = this.net.values[edge];
      const sign = make("span", { class: "act-sign", "aria-hidden": "true" });
      sign.style.background = value < 0 ? below : above;
      const other = this.spec.nodes[this.net.edges[2 * edge + 1 - side]];
      return make("li", {}, sign, make("b", {}, exact(value, this.spec.dtypes.values)), ` ${visible(other)}`);
    });
    const more = edges.length > LISTED ? `, the largest ${LISTED} of ${edges.length}` : "";
    return make(
      "div",
      {},
      make("div", { class: "act-caption" }, `${word}${more || (edges.length ? "" : " none")}`),
      make("ul", {}, ...lines),
    );
  }

  private sayLegend(): void {
    const theme = this.stage.theme;
    const { below, above } = signColours(theme.dark);
    const sign = (colour: string, words: string) => {
      const line = make("span", { class: "act-sign act-sign-line", "aria-hidden": "true" });
      line.style.background = colour;
      return make("span", { class: "act-legend" }, line, words);
    };
    const all = new Set(this.spec.columns.kind);
    const kinds = [
      ...KINDS.filter((kind) => all.has(kind)),
      ...[...all].filter((kind) => kind && !KINDS.includes(kind)),
    ];
    const signs = kinds.map((kind) => {
      const canvas = make("canvas", { "aria-hidden": "true" });
      drawKind(sized(canvas, 14, 14, devicePixelRatio || 1), kind, 7, 7, theme);
      return make("span", { class: "act-legend" }, canvas, kind);
    });
    this.legend.replaceChildren(sign(below, "below 0"), sign(above, "above 0"), ...signs);
    const notes = [`width by |weight| up to ${short(this.strongest)}${this.spec.unit && ` ${this.spec.unit}`}`];
    notes.push("nodes without a way in and out are left out");
    if (this.marksOf) notes.push(`${this.marksOf.word}s at the left`);
    if (!this.kept.length) notes.push("no path is left at this threshold: lower it");
    if (this.kept.length > MOST_LINES) notes.push(`lines: the largest ${MOST_LINES} of ${this.kept.length} edges`);
    this.stage.caption.textContent = notes.join(" · ");
  }

  private point(spot: Spot | undefined): void {
    this.attend(true);
    if (spot) this.stage.point({ node: spot.node });
  }

  private attend(yes: boolean): void {
    if (this.attended === yes) return;
    this.attended = yes;
    this.mark();
  }

  private pin(node: number | undefined): void {
    if (this.exists(node)) this.stage.pin({ node });
  }

  act(act: Act): void {
    if (!this.arrays) return;
    const here = this.model.get("pointed")?.node;
    if (act.kind === "move") this.point(stepped(this.drawing, here, act.x, -Math.sign(act.y)));
    else if (act.kind === "zoom") this.cut(act.by > 1 ? 1 : -1);
    else if (act.kind === "reset") this.stage.slow.set("threshold", this.spec.start);
    else if (act.kind === "pin") this.pin(here);
    else if (act.kind === "copy") this.copyCsv();
    else if (act.kind === "clear") this.stage.clear();
  }

  /** One stop up or down. */
  private cut(by: number): void {
    const step = stopAt(this.stops, this.model.get("threshold")) + by;
    this.stage.slow.set("threshold", this.stops[Math.min(Math.max(0, step), this.stops.length - 1)]);
  }

  private hearPointer(): void {
    const { plot } = this.stage;
    const at = (event: MouseEvent) => {
      const frame = plot.getBoundingClientRect();
      return nodeAt(this.drawing, event.clientX - frame.left, event.clientY - frame.top);
    };
    plot.addEventListener("pointermove", (event) => this.point(at(event)));
    for (const gone of ["pointerleave", "blur"]) plot.addEventListener(gone, () => this.attend(false));
    plot.addEventListener("click", (event) => this.pin(at(event)?.node));
  }

  private copyCsv(): void {
    const { nodes, dtypes } = this.spec;
    const { edges, values } = this.net;
    const lines = this.kept.map((edge) => [
      nodes[edges[2 * edge]],
      nodes[edges[2 * edge + 1]],
      Number(exact(values[edge], dtypes.values)),
    ]);
    const words = csv([["source", "target", this.spec.unit || "weight"], ...lines]);
    this.stage.copyText(words);
  }

  private picture(): HTMLCanvasElement {
    const { base, marks, theme } = this.stage;
    return flattened([base, marks], theme.dark ? "#111" : "#fff", base.classList.contains("act-pale") ? PALE : 1);
  }
}

export default {
  render({ model, el }: Place<State>): () => void {
    const graph = new CircuitGraph(model, el);
    return () => graph.stop();
  },
};
