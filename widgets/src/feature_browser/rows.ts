/** The list: as many rows in the page as are in sight, whatever the length of the list. */

import { make, onceAFrame } from "../shared/dom.ts";
import { type Act, hearKeys } from "../shared/keyboard.ts";
import { cut, visible } from "../shared/text.ts";
import { type Columns, largest, type Sort, scrollFor, windowOf } from "./list.ts";
import { onMove } from "./roving.ts";
import { brief } from "./sheet.ts";

const LINE = 24;
const SPARE = 6;
const [FEATURE, WORDS, NUMBER] = [56, 92, 66]; // least widths of columns, as the styles have them

export interface ListHooks {
  point(feature: number): void;
  open(feature: number): void;
  sort(column: string): void;
  act(act: Act): void;
  /** Has this feature a page that can be opened here? */
  reachable(feature: number): boolean;
}

/** Pages and history have keys of their own. */
const KEYS: Record<string, Act> = {
  PageUp: { kind: "turn", x: 0, y: -1 },
  PageDown: { kind: "turn", x: 0, y: 1 },
  "[": { kind: "turn", x: -1, y: 0 },
  "]": { kind: "turn", x: 1, y: 0 },
};

export class Rows {
  private readonly head = make("div", { class: "act-list-head", role: "toolbar", "aria-label": "sort by" });
  private readonly gap = make("span", { class: "act-list-gap" });
  private readonly body = make("div", { class: "act-list-body", role: "presentation" });
  private readonly scroller = make(
    "div",
    { class: "act-plot act-list", tabindex: "0", role: "listbox", "aria-label": "features" },
    this.body,
  );
  readonly element = make("div", { class: "act-list-box" }, this.head, this.scroller);
  private columns: Columns | undefined;
  private names: string[] = [];
  private order: Uint32Array = new Uint32Array();
  private sizes: Record<string, number> = {};
  private sort: Sort = { column: "", down: true };
  private pointed: number | undefined;
  private opened: number | undefined;
  /** Place in the list by feature, -1 for what is not in it. */
  private places = new Int32Array();
  private readonly redraw = onceAFrame(() => this.draw());
  private readonly pool: HTMLElement[] = [];

  constructor(private readonly hooks: ListHooks) {
    this.scroller.addEventListener("scroll", () => {
      this.head.scrollLeft = this.scroller.scrollLeft;
      this.redraw();
    });
    hearKeys(this.scroller, (act) => hooks.act(act), KEYS);
    const featureAt = (event: Event) => {
      const row = (event.target as HTMLElement).closest<HTMLElement>("[data-feature]");
      return row ? Number(row.dataset.feature) : undefined;
    };
    onMove(this.body, (event) => {
      const feature = featureAt(event);
      if (feature !== undefined) hooks.point(feature);
    });
    this.body.addEventListener("click", (event) => {
      const feature = featureAt(event);
      if (feature !== undefined) hooks.open(feature);
    });
    this.head.addEventListener("keydown", (event) => this.walkHead(event));
  }

  /** New columns: everything is made anew. */
  load(columns: Columns): void {
    this.columns = columns;
    this.names = [...Object.keys(columns.words), ...Object.keys(columns.numbers)];
    this.sizes = Object.fromEntries(Object.entries(columns.numbers).map(([name, values]) => [name, largest(values)]));
    this.places = new Int32Array(largest(columns.features) + 1);
    this.pool.splice(0);
    this.body.replaceChildren();
    // Every line is as wide as this, whatever its words: columns stand under their titles.
    const widths = this.names.map((name) => (columns.words[name] ? WORDS : NUMBER));
    this.body.style.minWidth = `${widths.reduce((sum, width) => sum + width, FEATURE)}px`;
  }

  /** Another order, or another choice of rows. */
  show(order: Uint32Array, sort: Sort): void {
    this.order = order;
    this.sort = sort;
    this.places.fill(-1);
    const features = this.columns!.features;
    for (let at = 0; at < order.length; at++) this.places[features[order[at]]] = at;
    this.drawHead();
    this.body.style.height = `${order.length * LINE}px`;
    this.pool.forEach((line) => {
      line.dataset.row = "";
    });
    this.draw();
  }

  mark(pointed: number | undefined, opened: number | undefined): void {
    this.pointed = pointed;
    this.opened = opened;
    this.redraw();
  }

  /** Fill every line anew: another size, or pages that have come into reach. */
  refresh(): void {
    for (const line of this.pool) line.dataset.row = "";
    this.redraw();
  }

  placeOf(feature: number | undefined): number | undefined {
    const place = feature === undefined ? -1 : (this.places[feature] ?? -1);
    return place < 0 ? undefined : place;
  }

  featureAt(place: number): number | undefined {
    return place >= 0 && place < this.order.length ? this.columns!.features[this.order[place]] : undefined;
  }

  /** Row of the columns at a place of the list. */
  rowAt(place: number): number {
    return this.order[place];
  }

  get count(): number {
    return this.order.length;
  }

  /** How many rows a page key moves. */
  get page(): number {
    return Math.max(1, Math.floor(this.scroller.clientHeight / LINE) - 1);
  }

  reveal(feature: number | undefined): void {
    const at = this.placeOf(feature);
    if (at === undefined) return;
    this.scroller.scrollTop = scrollFor(at, this.scroller.scrollTop, this.scroller.clientHeight, LINE);
  }

  toTop(): void {
    this.scroller.scrollTop = 0;
  }

  private drawHead(): void {
    const focused = (document.activeElement as HTMLElement | null)?.dataset?.column;
    const inside = this.head.contains(document.activeElement);
    const heads = ["feature", ...this.names].map((name) => this.headOf(name));
    const active = heads.find((head) => head.dataset.column === (inside ? focused : this.sort.column)) ?? heads[0];
    for (const head of heads) head.tabIndex = head === active ? 0 : -1;
    this.head.replaceChildren(...heads, this.gap);
    this.head.scrollLeft = this.scroller.scrollLeft;
    if (inside) active.focus();
  }

  private headOf(name: string): HTMLButtonElement {
    const on = this.sort.column === name;
    const words = name === "feature" ? "№" : visible(name);
    const head = make("button", {
      type: "button",
      class: this.columns!.words[name] ? "act-list-title act-list-words" : "act-list-title",
      "data-column": name,
      title: name,
    });
    head.append(make("span", {}, words), on ? (this.sort.down ? " ▾" : " ▴") : "");
    head.setAttribute(
      "aria-label",
      `sort by ${name}${on ? (this.sort.down ? ", largest first" : ", smallest first") : ""}`,
    );
    head.setAttribute("aria-pressed", String(on));
    head.addEventListener("click", () => this.hooks.sort(name));
    return head;
  }

  private walkHead(event: KeyboardEvent): void {
    event.stopPropagation();
    const step = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (!step) return;
    event.preventDefault();
    const heads = [...this.head.querySelectorAll("button")];
    const at = heads.indexOf(document.activeElement as HTMLButtonElement);
    const next = heads[Math.min(heads.length - 1, Math.max(0, at + step))];
    for (const head of heads) head.tabIndex = head === next ? 0 : -1;
    next.focus();
    this.scroller.scrollLeft = this.head.scrollLeft;
  }

  private draw(): void {
    if (!this.columns) return;
    const { scrollTop, clientHeight, clientWidth, offsetWidth } = this.scroller;
    this.gap.style.flexBasis = `${offsetWidth - clientWidth}px`;
    const [from, to] = windowOf(scrollTop, clientHeight, LINE, this.order.length, SPARE);
    const wanted = Math.ceil(clientHeight / LINE) + 2 * SPARE + 1;
    while (this.pool.length < wanted) {
      this.pool.push(this.emptyLine());
      this.body.append(this.pool.at(-1)!);
    }
    this.scroller.removeAttribute("aria-activedescendant");
    // A line keeps its place in the pool, so that scrolling by one fills one.
    const used = new Set<number>();
    for (let place = from; place < Math.min(to, from + this.pool.length); place++) {
      used.add(place % this.pool.length);
      this.fill(this.pool[place % this.pool.length], place);
    }
    this.pool.forEach((line, at) => {
      line.hidden = !used.has(at);
    });
  }

  private emptyLine(): HTMLElement {
    const cells = ["feature", ...this.names].map((name) =>
      make("span", { class: this.columns!.words[name] ? "act-list-cell act-list-words" : "act-list-cell" }),
    );
    return make("div", { class: "act-list-row", role: "option" }, ...cells);
  }

  private fill(line: HTMLElement, place: number): void {
    const row = this.order[place];
    const feature = this.columns!.features[row];
    if (line.dataset.row !== String(place)) {
      line.dataset.row = String(place);
      line.dataset.feature = String(feature);
      line.id = `${this.prefix}${place}`;
      line.style.transform = `translateY(${place * LINE}px)`;
      line.classList.toggle("act-absent", !this.hooks.reachable(feature));
      line.setAttribute("aria-posinset", String(place + 1));
      line.setAttribute("aria-setsize", String(this.order.length));
      this.fillCells(line, row, feature);
    }
    line.classList.toggle("act-pointed", feature === this.pointed);
    line.setAttribute("aria-selected", String(feature === this.opened));
    if (feature === this.pointed) this.scroller.setAttribute("aria-activedescendant", line.id);
  }

  /** Ids must differ between widgets of one page. */
  private readonly prefix = `act-row-${Math.random().toString(36).slice(2, 8)}-`;

  private fillCells(line: HTMLElement, row: number, feature: number): void {
    const { words, numbers } = this.columns!;
    const cells = line.children as HTMLCollectionOf<HTMLElement>;
    cells[0].textContent = String(feature);
    this.names.forEach((name, at) => {
      const cell = cells[at + 1];
      const on = name === this.sort.column;
      cell.textContent = words[name] ? cut(visible(words[name][row]), 40) : brief(numbers[name][row]);
      cell.classList.toggle("act-list-sorted", on);
      const share = on && numbers[name] ? Math.abs(numbers[name][row]) / (this.sizes[name] || 1) : 0;
      cell.style.setProperty("--share", `${Math.round(100 * (Number.isFinite(share) ? share : 0))}%`);
    });
  }
}
