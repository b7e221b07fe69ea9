/** TokenStrip: a text whose tokens carry colours. Hover reads, click pins, arrows walk. */

import "./style.css";
import { type Numbers, unpack } from "../shared/bytes.ts";
import { css, type Range, rampFor } from "../shared/colours.ts";
import { copyPicture, copyText, fileName } from "../shared/copy.ts";
import { button, make, markReady, onceAFrame } from "../shared/dom.ts";
import { Kernel } from "../shared/kernel.ts";
import { type Act, hearKeys } from "../shared/keyboard.ts";
import { legend } from "../shared/legend.ts";
import { extentOf, type MapSpec, type MapState, mapControls, rangeOf, shownMaps } from "../shared/maps.ts";
import { Listeners, type Model, type Place, patient, type Spot, toggled } from "../shared/model.ts";
import { exact, short } from "../shared/numbers.ts";
import { ReadOut, type Said, sentence } from "../shared/readout.ts";
import { csv, visible } from "../shared/text.ts";
import { onTheme, themeOf } from "../shared/theme.ts";
import { paints } from "./draw.ts";
import { picture } from "./picture.ts";

interface Spec extends MapSpec {
  tokens: string[];
}
interface State extends MapState {
  spec: Spec;
}

const KEYS = "left and right walk the tokens, up and down the maps, Enter pins, c copies CSV";

class TokenStrip {
  private readonly listeners = new Listeners();
  private readonly plot = make("div", { class: "act-plot", tabindex: "0", role: "application" });
  private readonly readOut = new ReadOut("Hover or use the arrow keys; click pins.");
  private readonly caption = make("div", { class: "act-caption" });
  private readonly pinList = make("ul", { class: "act-pins", "aria-label": "pinned tokens" });
  private readonly controls = make("div", { class: "act-controls" });
  private readonly title = make("div", { class: "act-title" });
  private readonly root = make("div", { class: "act act-tokens" });
  private readonly slow: ReturnType<typeof patient<State>>;
  private readonly redraw = onceAFrame(() => this.draw());
  private values: Numbers | undefined;
  private spans = new Map<string, HTMLElement>();

  constructor(
    private readonly model: Model<State>,
    el: HTMLElement,
  ) {
    this.slow = patient(model);
    this.root.append(this.title, this.controls, this.plot, this.readOut.element, this.caption, this.pinList);
    el.append(this.root);
    onTheme(this.listeners, this.redraw);
    this.listeners.to(model, "change:data", () => void this.load());
    for (const name of ["shown", "scale"]) this.listeners.to(model, `change:${name}`, this.redraw);
    this.listeners.to(model, "change:pointed", () => this.mark());
    this.listeners.to(model, "change:pinned", () => this.mark());
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

  private async load(): Promise<void> {
    const { spec } = this;
    this.values = (await unpack(this.model.get("data"), spec.arrays)).values;
    this.title.textContent = spec.title;
    const words = `Tokens ${spec.title}, ${spec.tokens.length} tokens, ${spec.names.length} maps; ${KEYS}`;
    this.plot.setAttribute("aria-label", words);
    const copy = make(
      "span",
      { class: "act-push" },
      button("PNG", "Copy the picture", () => void this.copyPng()),
      button("CSV", "Copy all values", () => this.copyCsv()),
    );
    this.controls.replaceChildren(...mapControls(this.model, spec), copy);
    this.redraw();
  }

  private row(map: number): Numbers {
    const count = this.spec.tokens.length;
    return this.values!.subarray(map * count, (map + 1) * count);
  }

  private look(map: number, dark: boolean) {
    const range: Range = this.model.get("scale") === "own" ? rangeOf(this.row(map)) : this.spec.range;
    return { range, ramp: rampFor(range, dark, true) };
  }

  private draw(): void {
    if (!this.values) return;
    const { dark } = themeOf(this.root);
    this.spans.clear();
    this.plot.replaceChildren(...this.maps.map((map) => this.strip(map, dark)));
    const { data, unit, source } = this.spec;
    this.caption.textContent = `data ${short(data[0])} to ${short(data[1])}${unit && ` ${unit}`} · ${source}`;
    this.mark();
    markReady(this.root);
  }

  private strip(map: number, dark: boolean): HTMLElement {
    const { range, ramp } = this.look(map, dark);
    const values = this.row(map);
    const colours = paints(values, range, ramp);
    const bar = legend({ ramp, range, data: extentOf(values) }, this.spec.unit);
    const head = make("div", { class: "act-strip-head" }, make("span", {}, this.spec.names[map]), bar);
    const line = make("div", { class: "act-strip" }, head);
    this.spec.tokens.forEach((token, position) => {
      const span = make(
        "span",
        { class: "act-token", "data-map": `${map}`, "data-position": `${position}` },
        visible(token),
      );
      const paint = colours[position];
      if (paint) {
        span.style.background = css(paint.ground);
        span.style.color = paint.ink;
      } else span.classList.add("act-missing");
      this.spans.set(`${map}:${position}`, span);
      line.append(span);
      if (token.includes("\n")) line.append(make("br"));
    });
    return line;
  }

  private span(spot: Spot): HTMLElement | undefined {
    return this.spans.get(`${spot.map ?? this.maps[0]}:${spot.position}`);
  }

  /** Outline what is pointed at and pinned, and say it. */
  private mark(): void {
    if (!this.values) return;
    for (const span of this.plot.querySelectorAll(".act-cursor, .act-pinned"))
      span.classList.remove("act-cursor", "act-pinned");
    const pins = (this.model.get("pinned") ?? []).filter((pin) => this.exists(pin));
    for (const pin of pins) this.span(pin)?.classList.add("act-pinned");
    this.pinList.replaceChildren(...pins.map((pin) => make("li", {}, sentence(this.said(pin)))));
    const here = this.model.get("pointed") ?? {};
    if (!this.exists(here)) return;
    this.span(here)?.classList.add("act-cursor");
    this.readOut.say(this.said(here));
  }

  /** Other widgets may point along axes we do not have, or past our text. */
  private exists(spot: Spot): boolean {
    return (
      spot.position !== undefined && spot.position < this.spec.tokens.length && (spot.map ?? 0) < this.spec.names.length
    );
  }

  private said(spot: Spot): Said {
    const { spec } = this;
    const map = spot.map ?? this.maps[0];
    const value = exact(this.row(map)[spot.position], spec.dtype);
    return [
      ["map", spec.names[map]],
      ["position", String(spot.position)],
      ["token", `“${visible(spec.tokens[spot.position])}”`],
      ["value", `${value}${spec.unit && ` ${spec.unit}`}`],
    ];
  }

  private point(map: number, position: number): void {
    const here = this.model.get("pointed") ?? {};
    if (here.map !== map || here.position !== position) this.slow.set("pointed", { map, position });
  }

  private pin(spot: Spot): void {
    if (!this.exists(spot)) return;
    this.model.set(
      "pinned",
      toggled(this.model.get("pinned") ?? [], { map: spot.map ?? this.maps[0], position: spot.position }),
    );
    this.model.save_changes();
  }

  private act(act: Act): void {
    const here = this.model.get("pointed") ?? {};
    if (act.kind === "move") this.step(act.x, act.y);
    else if (act.kind === "home" || act.kind === "end") this.step(act.kind === "home" ? -Infinity : Infinity, 0);
    else if (act.kind === "pin") this.pin(here);
    else if (act.kind === "copy") this.copyCsv();
    else if (act.kind === "clear") {
      this.slow.set("pointed", {});
      this.readOut.clear();
    }
  }

  private step(right: number, down: number): void {
    const { maps } = this;
    const here = this.model.get("pointed") ?? {};
    const clamp = (value: number, count: number) => Math.min(Math.max(0, value), count - 1);
    const row = clamp(Math.max(0, maps.indexOf(here.map ?? maps[0])) + Math.sign(down), maps.length);
    const position = clamp((here.position ?? (right > 0 ? -1 : 0)) + right, this.spec.tokens.length);
    this.point(maps[row], position);
    this.span({ map: maps[row], position })?.scrollIntoView({ block: "nearest" });
  }

  private hearPointer(): void {
    const spotAt = (event: Event): Spot | undefined => {
      const span = (event.target as HTMLElement).closest<HTMLElement>("[data-position]");
      return span ? { map: Number(span.dataset.map), position: Number(span.dataset.position) } : undefined;
    };
    this.plot.addEventListener("pointerover", (event) => {
      const spot = spotAt(event);
      if (spot) this.point(spot.map, spot.position);
    });
    this.plot.addEventListener("click", (event) => {
      const spot = spotAt(event);
      if (spot) this.pin(spot);
    });
  }

  private copyCsv(): void {
    const { spec } = this;
    const head = ["position", "token", ...spec.names];
    const body = spec.tokens.map((token, position) => [
      position,
      token,
      ...spec.names.map((_, map) => Number(exact(this.row(map)[position], spec.dtype))),
    ]);
    void copyText(csv([head, ...body]), fileName(spec.title)).then((words) => this.readOut.tell(words));
  }

  private async copyPng(): Promise<void> {
    const theme = themeOf(this.root);
    const strips = this.maps.map((map) => {
      const { range, ramp } = this.look(map, theme.dark);
      return { name: this.spec.names[map], paints: paints(this.row(map), range, ramp) };
    });
    const whole = picture(this.spec.title, this.spec.tokens, strips, theme);
    this.readOut.tell(await copyPicture(whole, fileName(this.spec.title)));
  }
}

export default {
  render({ model, el }: Place<State>): () => void {
    const strip = new TokenStrip(model, el);
    return () => strip.stop();
  },
};
