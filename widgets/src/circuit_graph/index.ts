/** CircuitGraph: a circuit from its embeddings up. The slider prunes, pointing reads, a click pins. */

import "./style.css";
import { type ArrayEntry, type Dtype, type Numbers, unpack } from "../shared/bytes.ts";
import { signColours } from "../shared/colours.ts";
import { copyPicture, copyText, fileName, flattened } from "../shared/copy.ts";
import { button, make, markReady, onceAFrame, onWidth, sized, slider } from "../shared/dom.ts";
import { Kernel } from "../shared/kernel.ts";
import { type Act, hearKeys } from "../shared/keyboard.ts";
import { Listeners, type Model, type Place, type Spot as Pointed, patient, toggled } from "../shared/model.ts";
import { exact, short } from "../shared/numbers.ts";
import { ReadOut, type Said, sentence } from "../shared/readout.ts";
import { csv, visible } from "../shared/text.ts";
import { onTheme, themeOf } from "../shared/theme.ts";
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

class CircuitGraph {
  private readonly listeners = new Listeners();
  private readonly base = make("canvas", { class: "act-map" });
  private readonly marks = make("canvas", { class: "act-marks", "aria-hidden": "true" });
  private readonly plot = make("div", { class: "act-plot", tabindex: "0", role: "application" }, this.base, this.marks);
  private readonly readOut = new ReadOut("Point at a node or use the arrow keys; click pins.");
  private readonly around = make("div", { class: "act-around" });
  private readonly count = make("output", { class: "act-output", "aria-live": "polite" });
  private readonly caption = make("div", { class: "act-caption" });
  private readonly legend = make("div", { class: "act-circuit-legend" });
  private readonly check = make("div", { class: "act-check" });
  private readonly pinList = make("ul", { class: "act-pins", "aria-label": "pinned nodes" });
  private readonly controls = make("div", { class: "act-controls" });
  private readonly title = make("div", { class: "act-title" });
  private readonly root = make("div", { class: "act act-circuit" });
  private readonly slow: ReturnType<typeof patient<State>>;
  private readonly redraw = onceAFrame(() => this.draw());
  private arrays: Record<string, Numbers> | undefined;
  private stops: number[] = [0];
  private strongest = 1;
  private kept: number[] = [];
  private drawing: Drawing = { spots: [], rows: [], width: 0, height: 0 };
  private bar: HTMLInputElement | undefined;
  private width = 0;
  /** Is the mouse or the keyboard on the drawing? Elsewhere what was pointed at stays known, but the rest gets its colours back. */
  private attended = false;

  constructor(
    private readonly model: Model<State>,
    el: HTMLElement,
  ) {
    this.slow = patient(model);
    const under = [this.readOut.element, this.around, this.legend, this.caption, this.check, this.pinList];
    this.root.append(this.title, this.controls, this.plot, ...under);
    el.append(this.root);
    onTheme(this.listeners, this.redraw);
    onWidth(this.root, this.listeners, (width) => {
      this.width = width;
      this.redraw();
    });
    this.listeners.to(model, "change:data", () => void this.load());
    this.listeners.to(model, "change:threshold", () => this.prune());
    for (const name of ["pointed", "pinned"]) this.listeners.to(model, `change:${name}`, () => this.mark());
    this.hearPointer();
    hearKeys(this.plot, (act) => this.act(act));
    void this.load();
    new Kernel(model, this.listeners).ping(() => {});
  }

  stop(): void {
    this.slow.stop();
    this.listeners.stop();
    this.root.remove();
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

  private async load(): Promise<void> {
    const { spec } = this;
    this.arrays = await unpack(this.model.get("data"), spec.arrays);
    const stops = stopsOf(this.arrays.values);
    this.strongest = stops[stops.length - 1] || 1;
    this.stops = usefulStops(this.net, stops);
    this.title.textContent = spec.title;
    this.check.textContent = spec.check;
    const size = `${spec.nodes.length} nodes, ${this.arrays.values.length} edges`;
    this.plot.setAttribute("aria-label", `Circuit ${spec.title}, ${size}; ${KEYS}`);
    this.fillControls();
    this.prune();
  }

  private fillControls(): void {
    const last = this.stops.length - 1;
    const say = (step: number) => `≥ ${short(this.stops[step])}`;
    const label = slider("|weight|", [0, last], stopAt(this.stops, this.model.get("threshold")), say, (step) =>
      this.slow.set("threshold", this.stops[step]),
    );
    this.bar = label.querySelector("input")!;
    const copies = [
      button("PNG", "Copy the picture", () => void this.copyPng()),
      button("CSV", "Copy the edges on screen", () => this.copyCsv()),
    ];
    this.controls.replaceChildren(label, this.count, make("span", { class: "act-push" }, ...copies));
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
    this.redraw();
  }

  private draw(): void {
    if (!this.arrays || !this.width) return;
    const theme = themeOf(this.root);
    const gutter = this.marksOf ? GUTTER : 6;
    const bare = arranged(nodesOf(this.net, this.kept), this.arrays.rows, this.width - 4, gutter);
    const density = devicePixelRatio || 1;
    const brush = sized(this.base, bare.width, bare.height, density);
    sized(this.marks, bare.width, bare.height, density);
    this.drawing = labelled(brush, bare, this.words, theme);
    drawEdges(brush, this.drawing, this.net, this.lines(), this.strongest, theme);
    drawNodes(brush, this.drawing, this.words, theme);
    drawLayers(brush, this.drawing, this.words, theme);
    this.sayLegend();
    this.mark();
    markReady(this.root);
  }

  /** The edges that get a line. Every node stays; of very many edges only the largest could be told apart. */
  private lines(): readonly number[] {
    if (this.kept.length <= MOST_LINES) return this.kept;
    const size = (edge: number) => Math.abs(this.net.values[edge]);
    return [...this.kept].sort((a, b) => size(b) - size(a)).slice(0, MOST_LINES);
  }

  /** Pointed and pinned nodes with their edges, over a paler rest; and what is pointed at in words. */
  private mark(): void {
    if (!this.arrays) return;
    const here = this.model.get("pointed")?.node;
    const pins = (this.model.get("pinned") ?? []).map(({ node }) => node).filter((node) => this.exists(node));
    const shown = this.drawing.spots.filter(({ node }) => (this.attended && node === here) || pins.includes(node));
    this.base.classList.toggle("act-pale", shown.length > 0);
    const brush = this.marks.getContext("2d")!;
    brush.clearRect(0, 0, this.drawing.width, this.drawing.height);
    const theme = themeOf(this.root);
    const edges = shown.flatMap(({ node }) => [...this.edges(node, 1), ...this.edges(node, 0)]);
    drawEdges(brush, this.drawing, this.net, edges, this.strongest, theme);
    const touched = new Set([...nodesOf(this.net, edges), ...shown.map(({ node }) => node)]);
    drawNodes(brush, this.drawing, this.words, theme, touched);
    for (const spot of shown) outline(brush, spot, pins.includes(spot.node));
    this.pinList.replaceChildren(...pins.map((node) => make("li", {}, sentence(this.said(node)))));
    if (!this.exists(here)) return;
    this.readOut.say(this.said(here));
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
    const { below, above } = signColours(themeOf(this.root).dark);
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
    const theme = themeOf(this.root);
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
    this.caption.textContent = notes.join(" · ");
  }

  private point(spot: Spot | undefined): void {
    this.attend(true);
    if (spot && this.model.get("pointed")?.node !== spot.node) this.slow.set("pointed", { node: spot.node });
  }

  private attend(yes: boolean): void {
    if (this.attended === yes) return;
    this.attended = yes;
    this.mark();
  }

  private pin(node: number | undefined): void {
    if (!this.exists(node)) return;
    this.model.set("pinned", toggled(this.model.get("pinned") ?? [], { node }));
    this.model.save_changes();
  }

  private act(act: Act): void {
    if (!this.arrays) return;
    const here = this.model.get("pointed")?.node;
    if (act.kind === "move") this.point(stepped(this.drawing, here, act.x, -Math.sign(act.y)));
    else if (act.kind === "zoom") this.cut(act.by > 1 ? 1 : -1);
    else if (act.kind === "reset") this.slow.set("threshold", this.spec.start);
    else if (act.kind === "pin") this.pin(here);
    else if (act.kind === "copy") this.copyCsv();
    else if (act.kind === "clear") {
      this.slow.set("pointed", {});
      this.readOut.clear();
    }
  }

  /** One stop up or down. */
  private cut(by: number): void {
    const step = stopAt(this.stops, this.model.get("threshold")) + by;
    this.slow.set("threshold", this.stops[Math.min(Math.max(0, step), this.stops.length - 1)]);
  }

  private hearPointer(): void {
    const at = (event: MouseEvent) => {
      const frame = this.plot.getBoundingClientRect();
      return nodeAt(this.drawing, event.clientX - frame.left, event.clientY - frame.top);
    };
    this.plot.addEventListener("pointermove", (event) => this.point(at(event)));
    for (const gone of ["pointerleave", "blur"]) this.plot.addEventListener(gone, () => this.attend(false));
    this.plot.addEventListener("click", (event) => this.pin(at(event)?.node));
  }

  private copyCsv(): void {
    const { nodes, dtypes, title } = this.spec;
    const { edges, values } = this.net;
    const lines = this.kept.map((edge) => [
      nodes[edges[2 * edge]],
      nodes[edges[2 * edge + 1]],
      Number(exact(values[edge], dtypes.values)),
    ]);
    const words = csv([["source", "target", this.spec.unit || "weight"], ...lines]);
    void copyText(words, fileName(title)).then((done) => this.readOut.tell(done));
  }

  private async copyPng(): Promise<void> {
    const pale = this.base.classList.contains("act-pale") ? PALE : 1;
    const picture = flattened([this.base, this.marks], themeOf(this.root).dark ? "#111" : "#fff", pale);
    this.readOut.tell(await copyPicture(picture, fileName(this.spec.title)));
  }
}

export default {
  render({ model, el }: Place<State>): () => void {
    const graph = new CircuitGraph(model, el);
    return () => graph.stop();
  },
};
