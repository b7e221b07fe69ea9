/** ImageOverlay: maps over the patches of an image. Hover reads, click pins, arrows walk, the slider fades. */

import "./style.css";
import { type Numbers, unpack } from "../shared/bytes.ts";
import { type Range, rampFor } from "../shared/colours.ts";
import { copyPicture, copyText, fileName } from "../shared/copy.ts";
import { button, choice, make, markReady, onceAFrame, onWidth, sized, slider } from "../shared/dom.ts";
import { Kernel } from "../shared/kernel.ts";
import { type Act, hearKeys } from "../shared/keyboard.ts";
import { legend } from "../shared/legend.ts";
import { extentOf, type MapSpec, type MapState, mapControls, rangeOf, shownMaps } from "../shared/maps.ts";
import { Listeners, type Model, type Place, patient, type Spot, toggled } from "../shared/model.ts";
import { exact, short } from "../shared/numbers.ts";
import { ReadOut, type Said, sentence } from "../shared/readout.ts";
import { csv } from "../shared/text.ts";
import { onTheme, themeOf } from "../shared/theme.ts";
import { cover, insideShare, opaque, outline, panelWidth, type Segment } from "./draw.ts";
import { drawPanel } from "./panel.ts";

interface Spec extends MapSpec {
  size: [number, number];
}
interface State extends MapState {
  spec: Spec;
  opacity: number;
}

const KEYS = "arrows walk the patches, Enter pins, c copies CSV";
const GAP = 12;
/** The panel that shows the image alone. */
const BARE = -1;

class ImageOverlay {
  private readonly listeners = new Listeners();
  private readonly plot = make("div", { class: "act-plot", tabindex: "0", role: "application" });
  private readonly legends = make("div", { class: "act-legends" });
  private readonly readOut = new ReadOut("Hover or use the arrow keys; click pins.");
  private readonly caption = make("div", { class: "act-caption" });
  private readonly pinList = make("ul", { class: "act-pins", "aria-label": "pinned patches" });
  private readonly controls = make("div", { class: "act-controls" });
  private readonly title = make("div", { class: "act-title" });
  private readonly root = make("div", { class: "act act-image" });
  private readonly slow: ReturnType<typeof patient<State>>;
  private readonly redraw = onceAFrame(() => this.draw());
  private arrays: Record<string, Numbers> | undefined;
  private image: HTMLCanvasElement | undefined;
  private edges: Segment[] = [];
  private bySize = true;
  private width = 0;

  constructor(
    private readonly model: Model<State>,
    el: HTMLElement,
  ) {
    this.slow = patient(model);
    this.root.append(
      this.title,
      this.controls,
      this.plot,
      this.legends,
      this.readOut.element,
      this.caption,
      this.pinList,
    );
    el.append(this.root);
    onTheme(this.listeners, this.redraw);
    onWidth(this.root, this.listeners, (width) => {
      this.width = width;
      this.redraw();
    });
    this.listeners.to(model, "change:data", () => void this.load());
    for (const name of ["shown", "scale", "opacity", "pointed", "pinned"])
      this.listeners.to(model, `change:${name}`, this.redraw);
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

  private get maps(): number[] {
    return shownMaps(this.model.get("shown"), this.spec.names.length);
  }

  /** Patches down and across. */
  private get grid(): [number, number] {
    const [, rows, columns] = this.spec.arrays[0].shape;
    return [rows, columns];
  }

  private entry(name: string) {
    return this.spec.arrays.find((array) => array.name === name);
  }

  private async load(): Promise<void> {
    const { spec } = this;
    this.arrays = await unpack(this.model.get("data"), spec.arrays);
    const [height, width] = this.entry("image")!.shape;
    this.image = document.createElement("canvas");
    sized(this.image, width, height, 1).putImageData(
      new ImageData(opaque(this.arrays.image, width * height), width, height),
      0,
      0,
    );
    const mask = this.entry("mask");
    this.edges = mask ? outline(this.arrays.mask, mask.shape[1], mask.shape[0]) : [];
    this.title.textContent = spec.title;
    const words = `Image ${spec.title}, ${this.grid.join(" by ")} patches, ${spec.names.length} maps; ${KEYS}`;
    this.plot.setAttribute("aria-label", words);
    this.controls.replaceChildren(...mapControls(this.model, spec), ...this.ownControls());
    this.redraw();
  }

  private ownControls(): HTMLElement[] {
    const fade = (value: number) => this.slow.set("opacity", value);
    const blend = (index: number) => {
      this.bySize = index === 0;
      this.redraw();
    };
    return [
      slider("opacity", [0, 100], this.model.get("opacity"), (value) => `${value} %`, fade),
      choice("cover", ["by size", "evenly"], 0, blend),
      make(
        "span",
        { class: "act-push" },
        button("PNG", "Copy the picture", () => void this.copyPng()),
        button("CSV", "Copy all values", () => this.copyCsv()),
      ),
    ];
  }

  private row(map: number): Numbers {
    const size = this.grid[0] * this.grid[1];
    return this.arrays!.values.subarray(map * size, (map + 1) * size);
  }

  private look(map: number, dark: boolean) {
    const range: Range = this.model.get("scale") === "own" ? rangeOf(this.row(map)) : this.spec.range;
    return { range, ramp: rampFor(range, dark, true), opacity: this.model.get("opacity") / 100, bySize: this.bySize };
  }

  private draw(): void {
    if (!this.arrays || !this.image || !this.width) return;
    // Pictures have their own light: the ramp stays the light one whatever the page.
    const panels = [BARE, ...this.maps];
    const width = panelWidth(this.width - 4, panels.length, GAP);
    this.reusePanels(panels);
    panels.forEach((map, at) => {
      const canvas = this.plot.children[at].querySelector("canvas")!;
      drawPanel(canvas, width, {
        image: this.image!,
        grid: this.grid,
        cover: map === BARE ? undefined : cover(this.row(map), this.look(map, false)),
        edges: this.edges,
        maskWidth: this.entry("mask")?.shape[1] ?? 1,
        cursor: this.at(this.model.get("pointed"), map),
        pins: (this.model.get("pinned") ?? []).map((pin) => this.at(pin, map)).filter((pin) => pin !== undefined),
      });
      const caption = this.plot.children[at].querySelector("figcaption")!;
      caption.textContent = map === BARE ? "image" : this.spec.names[map];
      (this.plot.children[at] as HTMLElement).style.width = `${width}px`;
    });
    this.sayAll();
    markReady(this.root);
  }

  private reusePanels(panels: readonly number[]): void {
    while (this.plot.children.length > panels.length) this.plot.lastElementChild!.remove();
    while (this.plot.children.length < panels.length)
      this.plot.append(make("figure", { class: "act-panel" }, make("canvas"), make("figcaption")));
    for (const [at, map] of panels.entries()) this.plot.children[at].setAttribute("data-map", String(map));
  }

  /** Where a spot stands on the panel of a map; the bare image shows what any map points at. */
  private at(spot: Spot | undefined, map: number): [number, number] | undefined {
    if (!spot || spot.y === undefined || spot.x === undefined) return undefined;
    const here = map === BARE || (spot.map ?? this.maps[0]) === map;
    return here && spot.y < this.grid[0] && spot.x < this.grid[1] ? [spot.y, spot.x] : undefined;
  }

  private sayAll(): void {
    const { spec } = this;
    const own = this.model.get("scale") === "own" ? this.maps : this.maps.slice(0, 1);
    const bars = own.map((map) => {
      const { range, ramp } = this.look(map, false);
      const bar = legend(
        { ramp, range, data: this.model.get("scale") === "own" ? extentOf(this.row(map)) : spec.data },
        spec.unit,
      );
      if (own.length > 1) bar.prepend(`${spec.names[map]}: `);
      return bar;
    });
    this.legends.replaceChildren(...bars);
    const notes = [
      `${this.grid[0]}×${this.grid[1]} patches on ${spec.size[0]}×${spec.size[1]} pixels`,
      `data ${short(spec.data[0])} to ${short(spec.data[1])}`,
      spec.source,
    ];
    if (this.edges.length) notes.push("outline: ground truth");
    this.caption.textContent = notes.join(" · ");
    const here = this.model.get("pointed") ?? {};
    if (this.at(here, BARE)) this.readOut.say(this.said(here));
    const pins = (this.model.get("pinned") ?? []).filter((pin) => this.at(pin, BARE));
    this.pinList.replaceChildren(...pins.map((pin) => make("li", {}, sentence(this.said(pin)))));
  }

  private said(spot: Spot): Said {
    const { spec, grid } = this;
    const map = spot.map ?? this.maps[0];
    const value = exact(this.row(map)[spot.y * grid[1] + spot.x], spec.dtype);
    const mask = this.entry("mask");
    const share = mask && insideShare(this.arrays!.mask, mask.shape as [number, number], [spot.y, spot.x], grid);
    return [
      ["map", spec.names[map]],
      ["y", String(spot.y)],
      ["x", String(spot.x)],
      ...(share === undefined ? [] : [["inside truth", `${Math.round(share * 100)} %`] as const]),
      ["value", `${value}${spec.unit && ` ${spec.unit}`}`],
    ];
  }

  private point(spot: Spot): void {
    const here = this.model.get("pointed") ?? {};
    if (here.map !== spot.map || here.y !== spot.y || here.x !== spot.x) this.slow.set("pointed", spot);
  }

  private pin(spot: Spot | undefined): void {
    if (!spot || !this.at(spot, BARE)) return;
    this.model.set(
      "pinned",
      toggled(this.model.get("pinned") ?? [], { map: spot.map ?? this.maps[0], y: spot.y, x: spot.x }),
    );
    this.model.save_changes();
  }

  private act(act: Act): void {
    if (act.kind === "move") this.step(act.x, act.y);
    else if (act.kind === "pin") this.pin(this.model.get("pointed"));
    else if (act.kind === "copy") this.copyCsv();
    else if (act.kind === "clear") {
      this.slow.set("pointed", {});
      this.readOut.clear();
    }
  }

  private step(right: number, down: number): void {
    const here = this.model.get("pointed") ?? {};
    const clamp = (value: number, count: number) => Math.min(Math.max(0, value), count - 1);
    const y = clamp((here.y ?? (down > 0 ? -1 : 0)) + down, this.grid[0]);
    const x = clamp((here.x ?? (right > 0 ? -1 : 0)) + right, this.grid[1]);
    this.point({ map: here.map ?? this.maps[0], y, x });
  }

  private hearPointer(): void {
    const spotAt = (event: MouseEvent): Spot | undefined => {
      const canvas = (event.target as HTMLElement).closest("canvas");
      const panel = canvas?.closest<HTMLElement>("[data-map]");
      if (!canvas || !panel) return undefined;
      const frame = canvas.getBoundingClientRect();
      const share = (place: number, length: number, count: number) =>
        Math.min(count - 1, Math.max(0, Math.floor((place / length) * count)));
      const map = Number(panel.dataset.map);
      const y = share(event.clientY - frame.top, frame.height, this.grid[0]);
      const x = share(event.clientX - frame.left, frame.width, this.grid[1]);
      return { map: map === BARE ? this.maps[0] : map, y, x };
    };
    this.plot.addEventListener("pointermove", (event) => {
      const spot = spotAt(event);
      if (spot) this.point(spot);
    });
    this.plot.addEventListener("click", (event) => this.pin(spotAt(event)));
  }

  private copyCsv(): void {
    const { spec, grid } = this;
    const cells = Array.from({ length: grid[0] * grid[1] }, (_, at) => at);
    const body = cells.map((at) => [
      Math.floor(at / grid[1]),
      at % grid[1],
      ...spec.names.map((_, map) => Number(exact(this.row(map)[at], spec.dtype))),
    ]);
    void copyText(csv([["y", "x", ...spec.names], ...body]), fileName(spec.title)).then((words) =>
      this.readOut.tell(words),
    );
  }

  private async copyPng(): Promise<void> {
    const panels = [...this.plot.querySelectorAll("canvas")];
    const density = devicePixelRatio || 1;
    const whole = document.createElement("canvas");
    whole.width = panels.reduce((sum, panel) => sum + panel.width + GAP * density, -GAP * density);
    whole.height = Math.max(...panels.map((panel) => panel.height)) + 20 * density;
    const brush = whole.getContext("2d")!;
    const theme = themeOf(this.root);
    brush.fillStyle = theme.dark ? "#111" : "#fff";
    brush.fillRect(0, 0, whole.width, whole.height);
    brush.font = `${12 * density}px ${theme.font}`;
    let x = 0;
    [BARE, ...this.maps].forEach((map, at) => {
      brush.drawImage(panels[at], x, 0);
      brush.fillStyle = theme.ink;
      brush.fillText(
        map === BARE ? "image" : this.spec.names[map],
        x,
        panels[at].height + 14 * density,
        panels[at].width,
      );
      x += panels[at].width + GAP * density;
    });
    this.readOut.tell(await copyPicture(whole, fileName(this.spec.title)));
  }
}

export default {
  render({ model, el }: Place<State>): () => void {
    const overlay = new ImageOverlay(model, el);
    return () => overlay.stop();
  },
};
