/** What a drawn widget stands on: title, controls, plot with marks over it, read-out, caption, pins, and their wiring. */

import { copyPicture, copyText, fileName } from "./copy.ts";
import { button, make, markReady, onceAFrame, onWidth, sized } from "./dom.ts";
import { Kernel } from "./kernel.ts";
import { type Act, hearKeys } from "./keyboard.ts";
import { Listeners, type Model, patient, sameSpot, toggled } from "./model.ts";
import { ReadOut } from "./readout.ts";
import { onTheme, type Theme, themeOf } from "./theme.ts";

/** The traits that every drawn widget has. */
export interface StageState<Spot> {
  spec: { title: string; check: string };
  data: DataView;
  pointed: Spot;
  pinned: Spot[];
}

/** What a widget does itself; the stage says when. */
export interface Scene {
  /** New numbers have come. */
  load(): Promise<void>;
  /** Width, theme or a trait that it follows has changed. */
  draw(): void;
  /** What is pointed at or pinned has changed. */
  mark(): void;
  act(act: Act): void;
  /** Keys that only this widget knows. */
  readonly keys?: Record<string, Act>;
}

export interface Names {
  /** Class of the root element: `act-<kind>`. */
  kind: string;
  /** The read-out while nothing is pointed at. */
  rest: string;
  /** What is pinned, for screen readers. */
  pins: string;
}

// biome-ignore lint/suspicious/noExplicitAny: a spot is whatever the widget points at
export class Stage<State extends StageState<any>> {
  readonly listeners = new Listeners();
  readonly base = make("canvas", { class: "act-map" });
  readonly marks = make("canvas", { class: "act-marks", "aria-hidden": "true" });
  readonly plot = make("div", { class: "act-plot", tabindex: "0", role: "application" }, this.base, this.marks);
  readonly readOut: ReadOut;
  readonly controls = make("div", { class: "act-controls" });
  readonly caption = make("div", { class: "act-caption" });
  readonly root: HTMLElement;
  readonly slow: ReturnType<typeof patient<State>>;
  readonly kernel: Kernel<State>;
  /** Asks for a drawing with the next animation frame. */
  readonly redraw = onceAFrame(() => this.scene && this.width && this.scene.draw());
  width = 0;
  private scene: Scene | undefined;
  private readonly title = make("div", { class: "act-title" });
  private readonly check = make("div", { class: "act-check" });
  private readonly pinList: HTMLElement;

  constructor(
    readonly model: Model<State>,
    el: HTMLElement,
    { kind, rest, pins }: Names,
    ...between: HTMLElement[]
  ) {
    this.readOut = new ReadOut(rest);
    this.pinList = make("ul", { class: "act-pins", "aria-label": pins });
    const under = [this.readOut.element, ...between, this.caption, this.check, this.pinList];
    this.root = make("div", { class: `act act-${kind}` }, this.title, this.controls, this.plot, ...under);
    this.slow = patient(model);
    this.kernel = new Kernel(model, this.listeners);
    el.append(this.root);
  }

  /** Let the widget live: from here on it is told what happens. `follows`: traits whose change asks for a drawing. */
  start(scene: Scene, follows: readonly (keyof State & string)[]): void {
    this.scene = scene;
    onTheme(this.listeners, this.redraw);
    onWidth(this.root, this.listeners, (width) => {
      this.width = width;
      this.redraw();
    });
    this.listeners.to(this.model, "change:data", () => void scene.load());
    for (const name of follows) this.listeners.to(this.model, `change:${name}`, this.redraw);
    for (const name of ["pointed", "pinned"]) this.listeners.to(this.model, `change:${name}`, () => scene.mark());
    hearKeys(this.plot, (act) => scene.act(act), scene.keys);
    void scene.load();
    this.kernel.ping(() => {});
  }

  stop(): void {
    this.slow.stop();
    this.listeners.stop();
    this.root.remove();
  }

  get spec(): State["spec"] {
    return this.model.get("spec");
  }

  get theme(): Theme {
    return themeOf(this.root);
  }

  /** Title, what a check found, and what a screen reader says of the plot. */
  name(label: string): void {
    this.title.textContent = this.spec.title;
    this.check.textContent = this.spec.check;
    this.plot.setAttribute("aria-label", label);
  }

  /** Both canvases at a size in CSS pixels; the brush of the lower one. */
  resize(width: number, height: number): CanvasRenderingContext2D {
    const density = devicePixelRatio || 1;
    sized(this.marks, width, height, density);
    const brush = sized(this.base, width, height, density);
    brush.font = `11px ${this.theme.font}`;
    return brush;
  }

  /** The brush of the upper canvas, wiped. */
  wiped(): CanvasRenderingContext2D {
    const brush = this.marks.getContext("2d")!;
    brush.save();
    brush.setTransform(1, 0, 0, 1, 0, 0);
    brush.clearRect(0, 0, this.marks.width, this.marks.height);
    brush.restore();
    return brush;
  }

  ready(): void {
    markReady(this.root);
  }

  /** Tell where the reader points, at once here and soon in the kernel. */
  point(spot: State["pointed"]): void {
    if (!sameSpot(this.model.get("pointed") ?? {}, spot)) this.slow.set("pointed", spot);
  }

  /** Pin, or take the pin away. */
  pin(spot: State["pointed"]): void {
    this.model.set("pinned", toggled(this.model.get("pinned") ?? [], spot) as State["pinned"]);
    this.model.save_changes();
  }

  showPins(lines: readonly string[]): void {
    this.pinList.replaceChildren(...lines.map((words) => make("li", {}, words)));
  }

  /** Nothing is pointed at any more. */
  clear(): void {
    this.slow.set("pointed", {} as State["pointed"]);
    this.readOut.clear();
  }

  /** Buttons to take the picture and the numbers along. */
  copies(picture: () => HTMLCanvasElement, table: () => void): HTMLElement {
    return make(
      "span",
      { class: "act-push" },
      button("PNG", "Copy the picture", () => void this.copyPicture(picture())),
      button("CSV", "Copy the numbers", table),
    );
  }

  copyText(words: string): void {
    void copyText(words, fileName(this.spec.title)).then((done) => this.readOut.tell(done));
  }

  private async copyPicture(picture: HTMLCanvasElement): Promise<void> {
    this.readOut.tell(await copyPicture(picture, fileName(this.spec.title)));
  }
}
