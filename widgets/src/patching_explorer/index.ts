/** PatchingExplorer: a map of approximate effects; a click runs the exact patch, whose number joins list and scatter. */

import "./style.css";
import { Heatmap, type State as MapState } from "../heatmap/heatmap.ts";
import { KNOWN_ZERO, NO_ROW } from "../heatmap/masks.ts";
import type { Numbers } from "../shared/bytes.ts";
import { copyPicture, copyText, fileName, flattened } from "../shared/copy.ts";
import { button, make, markReady, onceAFrame, onWidth, sized } from "../shared/dom.ts";
import { Listeners, type Model, type Place, type Spot, sameSpot } from "../shared/model.ts";
import type { Said } from "../shared/readout.ts";
import { csv } from "../shared/text.ts";
import { onTheme, themeOf } from "../shared/theme.ts";
import {
  agreement,
  agreementWords,
  type Box,
  brief,
  drawScatter,
  frameOf,
  type Mark,
  nearest,
  type Pair,
  said,
} from "./draw.ts";

interface Point {
  cell: Spot;
  approximate: number | null;
  exact: number;
  how: "run" | "known zero";
}
interface State extends MapState {
  points: Point[];
  largest: number;
  runs: boolean;
}
interface Shown {
  pair: Pair;
  mark: Mark;
  point: Point | undefined;
}

const NO_KERNEL =
  "No kernel has answered: an exact run needs one. Where a cell is running, the answer comes after it; in an exported page, never.";

class PatchingExplorer {
  private readonly listeners = new Listeners();
  private readonly left = make("div", { class: "act-explorer-map" });
  private readonly scatter = make("canvas", { class: "act-scatter", role: "img" });
  private readonly agreed = make("div", { class: "act-explorer-words", role: "status" });
  private readonly progress = make("div", { class: "act-explorer-words", role: "status", "aria-live": "polite" });
  private readonly trouble = make("div", { class: "act-trouble", role: "alert" });
  private readonly list = make("ul", { class: "act-pins", "aria-label": "cells with an exact value" });
  private readonly series: HTMLButtonElement;
  private readonly side = make("div", { class: "act-explorer-side" });
  private readonly root = make("div", { class: "act act-explorer" }, this.left, this.side);
  private readonly redraw = onceAFrame(() => this.draw());
  private readonly map: Heatmap;
  private check: Numbers | undefined;
  private here = false;
  private shown: Shown[] = [];
  private box: Box = { x: 20, y: 4, size: 200 };
  private chosen: Spot | undefined;
  /** A series of runs is under way; asked to stop, it ends after the run it waits for. */
  private running = false;

  constructor(
    private readonly model: Model<State>,
    el: HTMLElement,
  ) {
    this.series = button(
      `Run the ${model.get("largest")} largest`,
      "Run the largest cells exactly, one after another",
      () => (this.running ? this.stopSeries() : this.startSeries()),
    );
    const copies = [
      button("PNG", "Copy the scatter", () => void this.copyPng()),
      button("CSV", "Copy the exact values", () => this.copyCsv()),
    ];
    const controls = make(
      "div",
      { class: "act-controls" },
      this.series,
      make("span", { class: "act-push" }, ...copies),
    );
    const key = "● run here  ○ from the check  × known zero, left out of Pearson and slope";
    const legend = make("div", { class: "act-caption" }, key);
    this.side.append(controls, this.scatter, this.agreed, legend, this.progress, this.trouble, this.list);
    el.append(this.root);
    this.map = new Heatmap(model, this.left, {
      click: "runs the exact patch",
      valueName: "approximate",
      clicked: (spot) => void this.clicked(spot),
      outlined: () => this.points.map((point) => point.cell),
      more: (spot) => this.more(spot),
      loaded: ({ check }) => {
        this.here = true;
        this.check = check;
        this.show();
      },
    });
    onTheme(this.listeners, this.redraw);
    onWidth(this.side, this.listeners, (width) => {
      this.box = { ...this.box, size: Math.min(240, width - this.box.x - 2) };
      this.redraw();
    });
    for (const name of ["points", "runs"]) this.listeners.to(model, `change:${name}`, () => this.show());
    this.hearScatter();
  }

  stop(): void {
    this.running = false;
    this.map.stop();
    this.listeners.stop();
    this.root.remove();
  }

  private get points(): Point[] {
    return this.model.get("points") ?? [];
  }

  private get unit(): string {
    return this.model.get("spec").unit;
  }

  /** Everything that depends on what is known exactly. */
  private show(): void {
    if (!this.here) return;
    const checks = Array.from({ length: (this.check?.length ?? 0) / 2 }, (_, at) => at * 2);
    const of = (point: Point): Shown[] =>
      point.approximate === null ? [] : [{ pair: [point.approximate, point.exact], mark: point.how, point }];
    this.shown = [
      ...checks.map((at): Shown => ({ pair: [this.check![at], this.check![at + 1]], mark: "check", point: undefined })),
      ...this.points.flatMap(of),
    ];
    const runs = this.shown.filter(({ mark }) => mark === "run").map(({ pair }) => pair);
    this.agreed.textContent = agreementWords(agreement(runs), "run here");
    this.scatter.setAttribute(
      "aria-label",
      `approximate against exact; ${this.agreed.textContent || "no cell run yet"}`,
    );
    this.series.disabled = !this.model.get("runs");
    this.list.replaceChildren(...this.points.map((point) => this.line(point)).reverse());
    this.map.refresh();
    this.redraw();
  }

  private line(point: Point): HTMLElement {
    const { cell, approximate, exact, how } = point;
    const go = make(
      "button",
      { type: "button", title: `exact ${said(exact, this.unit)}` },
      this.map.words(cell),
      make("br"),
    );
    const known = how === "known zero" ? " (known without a run)" : "";
    go.append(`approximate ${brief(approximate)} · exact `, make("b", {}, brief(exact)), known);
    go.addEventListener("click", () => this.choose(point));
    return make("li", {}, go);
  }

  private choose(point: Point): void {
    this.chosen = point.cell;
    this.map.goTo(point.cell);
    this.redraw();
  }

  private more(spot: Spot): Said {
    const point = this.points.find(({ cell }) => sameSpot(cell, spot));
    if (point) return [["exact", said(point.exact, this.unit)]];
    return this.map.masks(spot).includes(KNOWN_ZERO) ? [["exact", said(0, this.unit)]] : [];
  }

  private async clicked(spot: Spot): Promise<void> {
    const masks = this.map.masks(spot);
    // The read-out says 0 already; only a kernel can add it to the list.
    if (masks.includes(KNOWN_ZERO) && !this.map.kernel.alive) return;
    if (masks.includes(NO_ROW)) {
      this.map.tell("There is no such token or patch here: nothing to run.");
      return;
    }
    const known = this.points.find(({ cell }) => sameSpot(cell, spot));
    if (known) return this.choose(known);
    if (!this.map.kernel.alive) this.progress.textContent = NO_KERNEL;
    else this.progress.textContent = `running ${this.map.words(spot)} …`;
    if (await this.ask(spot)) this.progress.textContent = "";
  }

  /** Ask for one exact value. Resolves with whether it came; a page without a kernel waits for ever, which costs nothing. */
  private ask(spot: Spot): Promise<boolean> {
    return new Promise((done) => {
      this.map.kernel.ask({ ask: "rerun", cell: spot }, ({ error }) => {
        this.trouble.textContent = typeof error === "string" ? `${this.map.words(spot)}: ${error}` : "";
        if (error) this.progress.textContent = "";
        else this.chosen = spot;
        this.redraw();
        done(!error);
      });
    });
  }

  private startSeries(): void {
    if (!this.map.kernel.alive) {
      this.progress.textContent = NO_KERNEL;
      return;
    }
    this.running = true;
    this.series.textContent = "Stop";
    this.map.kernel.ask({ ask: "largest" }, ({ cells }) => void this.runAll(cells as Spot[]));
  }

  private stopSeries(): void {
    this.running = false;
    this.progress.textContent = "stopping after this run …";
  }

  /** One question at a time: the next waits for the answer, so that stopping never leaves runs behind. */
  private async runAll(cells: readonly Spot[]): Promise<void> {
    let [done, fine] = [0, true];
    for (const cell of cells) {
      if (!this.running || !fine) break;
      this.progress.textContent = `${done + 1} of ${cells.length}: running ${this.map.words(cell)} …`;
      fine = await this.ask(cell);
      if (fine) done++;
    }
    const stopped = done < cells.length && fine ? ", stopped" : "";
    this.progress.textContent = cells.length ? `${done} of ${cells.length} run${stopped}` : "no cell is left to run";
    this.running = false;
    this.series.textContent = `Run the next ${this.model.get("largest")} largest`;
  }

  private draw(): void {
    const { x, y, size } = this.box;
    const brush = sized(this.scatter, x + size + 2, y + size + 20, devicePixelRatio || 1);
    const at = this.shown.findIndex(({ point }) => point && this.chosen && sameSpot(point.cell, this.chosen));
    drawScatter(brush, this.box, this.shown, at < 0 ? undefined : at, this.unit, themeOf(this.root));
    markReady(this.root);
  }

  private hearScatter(): void {
    this.scatter.addEventListener("pointermove", (event) => {
      const frame = this.scatter.getBoundingClientRect();
      const pairs = this.shown.map(({ pair }) => pair);
      const at = nearest(pairs, [event.clientX - frame.left, event.clientY - frame.top], frameOf(pairs), this.box);
      if (at === undefined) return;
      const { point, pair } = this.shown[at];
      if (point) this.choose(point);
      else this.map.tell(`from the check: approximate ${said(pair[0], this.unit)} · exact ${said(pair[1], this.unit)}`);
    });
  }

  private copyCsv(): void {
    const { keys, title } = this.model.get("spec");
    const lines = this.points.map(({ cell, approximate, exact, how }) => [
      ...keys.map((key) => cell[key]),
      approximate ?? "",
      exact,
      how,
    ]);
    const words = csv([[...keys, "approximate", "exact", "how"], ...lines]);
    void copyText(words, `${fileName(title)}_exact`).then((done) => this.map.tell(done));
  }

  private async copyPng(): Promise<void> {
    const picture = flattened([this.scatter], themeOf(this.root).dark ? "#111" : "#fff");
    this.map.tell(await copyPicture(picture, `${fileName(this.model.get("spec").title)}_scatter`));
  }
}

export default {
  render({ model, el }: Place<State>): () => void {
    const explorer = new PatchingExplorer(model, el);
    return () => explorer.stop();
  },
};
