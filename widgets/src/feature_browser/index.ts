/** FeatureBrowser: a list to sort, filter and search; the page of the opened feature beside it. */

import "./style.css";
import { type ArrayEntry, unpack } from "../shared/bytes.ts";
import { copyPicture, copyText, fileName } from "../shared/copy.ts";
import { button, make, markReady, onceAFrame, onWidth } from "../shared/dom.ts";
import { Kernel } from "../shared/kernel.ts";
import type { Act } from "../shared/keyboard.ts";
import { Listeners, type Model, type Place, patient, type Spot, sameSpot } from "../shared/model.ts";
import { exact } from "../shared/numbers.ts";
import { ReadOut, type Said } from "../shared/readout.ts";
import { visible } from "../shared/text.ts";
import { onTheme, themeOf } from "../shared/theme.ts";
import type { Look } from "./contexts.ts";
import { listCsv, pageCsv } from "./copies.ts";
import { Filters } from "./filters.ts";
import {
  type Columns,
  columnsOf,
  countWords,
  type Limits,
  type ListSpec,
  nextSort,
  rowsOf,
  type Sort,
} from "./list.ts";
import { pageOf } from "./page.ts";
import { picture } from "./picture.ts";
import { Rows } from "./rows.ts";
import { type Sheet, Visits } from "./sheet.ts";
import { Source } from "./source.ts";

interface State {
  spec: ListSpec;
  data: DataView;
  pointed: Spot;
  pinned: Spot[];
  sort: Sort;
  limits: Limits;
  hide_dead: boolean;
  query: string;
  book: DataView;
  bound: { arrays?: ArrayEntry[]; features?: number[] };
}

const REST = "Arrows walk the list, Enter opens, [ and ] go back and forward.";
const NO_KERNEL =
  "No kernel has answered: its page has to be read by one. Where a cell is running, the answer comes after it; in an exported page, never.";
/** Longer than a kernel at rest needs to answer. */
const PATIENCE = 700;
const PREFETCH_WAIT = 150;

class FeatureBrowser {
  private readonly listeners = new Listeners();
  private readonly slow: ReturnType<typeof patient<State>>;
  private readonly kernel: Kernel<State>;
  private readonly source: Source<State>;
  private readonly rows: Rows;
  private readonly filters: Filters;
  private readonly visits = new Visits();
  private readonly look: Look = { opacity: 60, cover: "by size" };
  private readonly title = make("div", { class: "act-title" });
  private readonly count = make("output", { class: "act-output" });
  private readonly note = make("div", { class: "act-caption" });
  private readonly readOut = new ReadOut(REST);
  private readonly heading = make("div", { class: "act-page-title", tabindex: "-1" });
  private readonly page = make("div", { class: "act-page-body" });
  private readonly steps: Record<"back" | "on" | "up" | "down", HTMLButtonElement>;
  private readonly copies: HTMLElement;
  private readonly link: HTMLButtonElement;
  private readonly root: HTMLElement;
  private readonly redraw = onceAFrame(() => this.drawPage());
  private columns: Columns | undefined;
  private found: Set<number> | undefined;
  private sheet: Sheet | undefined;
  /** The feature whose page is wanted; an answer about another one comes too late. */
  private wanted: number | undefined;
  private searched = "";
  private timers: ReturnType<typeof setTimeout>[] = [];

  constructor(
    private readonly model: Model<State>,
    el: HTMLElement,
  ) {
    this.slow = patient(model);
    this.kernel = new Kernel(model, this.listeners);
    this.source = new Source(this.kernel);
    this.rows = new Rows({
      point: (feature) => this.point(feature),
      open: (feature) => this.open(feature),
      sort: (column) => this.set("sort", nextSort(model.get("sort"), column, column in (this.columns?.words ?? {}))),
      act: (act) => this.act(act),
      reachable: (feature) => this.kernel.alive || !this.source.book.size || this.source.book.has(feature),
    });
    this.filters = new Filters({
      search: (text) => this.set("query", text),
      hideDead: (hide) => this.set("hide_dead", hide),
      limit: (limits) => this.set("limits", limits),
      go: (feature) => this.go(feature),
    });
    this.steps = {
      back: button("◂", "Back to the feature before ([)", () => this.step(-1)),
      on: button("▸", "Forward again (])", () => this.step(1)),
      up: button("▴", "Open the feature above in the list", () => this.beside(-1)),
      down: button("▾", "Open the feature below in the list", () => this.beside(1)),
    };
    this.link = button("Link", "Copy a link to this feature in this file", () => this.copyLink());
    const png = button("PNG", "Copy the page as a picture", () => void this.copyPng());
    this.copies = make(
      "span",
      { class: "act-push" },
      this.link,
      png,
      button("CSV", "Copy the contexts", () => this.copyPage()),
    );
    const over = make("div", { class: "act-controls" }, this.filters.search, ...this.filters.more);
    const listFoot = make(
      "div",
      { class: "act-controls act-list-foot" },
      this.count,
      make(
        "span",
        { class: "act-push" },
        button("CSV", "Copy the list as it is shown", () => this.copyList()),
      ),
    );
    const left = make("div", { class: "act-browser-list" }, this.rows.element, listFoot);
    const { back, on, up, down } = this.steps;
    const bar = make("div", { class: "act-controls" }, back, on, up, down, this.heading, this.copies);
    const right = make(
      "section",
      { class: "act-browser-page", "aria-label": "page of the opened feature" },
      bar,
      this.page,
    );
    const body = make("div", { class: "act-browser-body" }, left, right);
    this.root = make("div", { class: "act act-browser" }, this.title, over, body, this.readOut.element, this.note);
    el.append(this.root);
    this.listen();
    void this.load();
  }

  stop(): void {
    for (const timer of this.timers) clearTimeout(timer);
    this.filters.stop();
    this.slow.stop();
    this.listeners.stop();
    this.root.remove();
  }

  private listen(): void {
    const { model, listeners } = this;
    onTheme(listeners, this.redraw);
    onWidth(this.root, listeners, () => this.rows.refresh());
    listeners.to(model, "change:data", () => void this.load());
    listeners.to(model, "change:book", () => void this.load());
    for (const name of ["sort", "limits", "hide_dead"]) listeners.to(model, `change:${name}`, () => this.list(true));
    listeners.to(model, "change:query", () => this.search());
    listeners.to(model, "change:pointed", () => this.pointed());
    listeners.to(model, "change:pinned", () => this.turn());
    const linked = () => this.followLink();
    addEventListener("hashchange", linked);
    listeners.finally(() => removeEventListener("hashchange", linked));
    this.kernel.ping(() => {
      this.rows.refresh();
      this.sayNote();
      if (this.model.get("query").trim()) this.search();
    });
  }

  private get spec(): ListSpec {
    return this.model.get("spec");
  }

  private set<Name extends keyof State & string>(name: Name, value: State[Name]): void {
    this.model.set(name, value);
    this.model.save_changes();
  }

  private async load(): Promise<void> {
    const { spec } = this;
    const arrays = await unpack(this.model.get("data"), spec.arrays);
    this.columns = columnsOf(arrays, spec);
    this.rows.load(this.columns);
    this.title.textContent = spec.title;
    this.list(false);
    markReady(this.root);
    await this.source.load(this.model.get("book"), this.model.get("bound"));
    this.rows.refresh();
    this.sayNote();
    this.search();
    this.followLink();
    this.turn();
  }

  /** What is listed, and in which order. */
  private list(toTop: boolean): void {
    if (!this.columns) return;
    const state = {
      query: this.model.get("query"),
      hideDead: this.model.get("hide_dead"),
      limits: this.model.get("limits"),
    };
    const sort = this.model.get("sort");
    const found = state.query.trim() ? this.found : undefined;
    this.rows.show(rowsOf(this.columns, { sort, limits: state.limits, hideDead: state.hideDead, found }), sort);
    if (toTop) this.rows.toTop();
    this.filters.show(Object.keys(this.columns.numbers), this.columns.dead, state);
    this.count.textContent = countWords(this.rows.count, this.spec.count);
    this.pointed();
    this.showSteps();
  }

  private search(): void {
    const text = this.model.get("query").trim();
    this.searched = text;
    const arrive = (found: Set<number>, words: string) => {
      this.found = found;
      this.filters.say(words);
      this.list(true);
    };
    if (!text) {
      this.found = undefined;
      this.filters.say("");
      this.list(false);
      return;
    }
    const { size } = this.source.book;
    if (size && !this.kernel.alive) arrive(this.source.found(text), `looked in the ${size} pages of this file`);
    else this.filters.say(this.spec.absent || "searching …");
    if (!size)
      this.later(
        PATIENCE,
        () => this.searched === text && !this.kernel.alive && this.filters.say("a search needs a kernel"),
      );
    void this.source.ask(text).then((found) => {
      if (this.searched !== text) return;
      if (typeof found === "string") this.filters.say(found);
      else arrive(found, "");
    });
  }

  private later(wait: number, run: () => void): void {
    this.timers.push(setTimeout(run, wait));
  }

  private get opened(): number | undefined {
    const feature = (this.model.get("pinned") ?? []).find((pin) => pin.feature !== undefined)?.feature;
    return feature !== undefined && this.columns?.features.includes(feature) ? feature : undefined;
  }

  private open(feature: number): void {
    if (this.opened === feature) this.rows.reveal(feature);
    else this.set("pinned", [{ feature }]);
  }

  /** Open a feature named from outside the list. */
  private go(feature: number): void {
    if (this.columns?.features.includes(feature)) this.open(feature);
    else this.readOut.tell(`Feature ${feature} is not listed here.`);
  }

  private point(feature: number): void {
    if (!sameSpot(this.model.get("pointed") ?? {}, { feature })) this.slow.set("pointed", { feature });
  }

  private pointed(): void {
    const feature = this.model.get("pointed")?.feature;
    this.rows.mark(feature, this.opened);
    const place = this.rows.placeOf(feature);
    if (feature === undefined || place === undefined) return;
    this.rows.reveal(feature);
    this.readOut.say(this.said(feature));
  }

  private said(feature: number): Said {
    const { features, numbers, words } = this.columns!;
    const row = features.indexOf(feature);
    return [
      ["feature", String(feature)],
      ...Object.entries(words).map(([name, list]) => [visible(name), visible(list[row])] as const),
      ...Object.entries(numbers).map(([name, list]) => [visible(name), exact(list[row], "f4")] as const),
    ];
  }

  /** The opened feature has changed: its page is fetched and shown. */
  private turn(): void {
    const feature = this.opened;
    this.showHead();
    if (!this.columns || feature === this.wanted) return;
    this.wanted = feature;
    this.sheet = undefined;
    this.pointedAt(feature);
    if (feature === undefined) {
      this.redraw();
      return;
    }
    this.visits.go(feature);
    this.showSteps();
    const known = this.source.known(feature);
    this.page.classList.toggle("act-stale", !known);
    if (known) this.show(known);
    else this.wait(feature);
  }

  private pointedAt(feature: number | undefined): void {
    this.rows.mark(this.model.get("pointed")?.feature, feature);
    this.rows.reveal(feature);
  }

  private wait(feature: number): void {
    const still = () => this.wanted === feature && !this.sheet;
    const { size } = this.source.book;
    if (this.spec.absent) {
      this.tell(this.spec.absent);
      return;
    }
    if (!this.kernel.alive && size)
      this.tell(`The page of feature ${feature} is not in this file. ${this.holds(size)}`);
    else this.later(PATIENCE, () => still() && this.tell(this.kernel.alive ? "reading …" : NO_KERNEL));
    void this.source.read(feature).then((sheet) => {
      if (!still()) return;
      if (typeof sheet === "string") this.tell(sheet);
      else this.show(sheet);
    });
  }

  private show(sheet: Sheet): void {
    this.sheet = sheet;
    this.drawPage();
    this.page.scrollTop = 0;
    this.later(PREFETCH_WAIT, () => this.prefetch(sheet.feature));
  }

  /** The neighbours in the list are read before they are asked for. */
  private prefetch(feature: number): void {
    const place = this.rows.placeOf(feature);
    if (!this.kernel.alive || place === undefined || this.wanted !== feature) return;
    for (const step of [1, -1]) {
      const beside = this.rows.featureAt(place + step);
      if (beside !== undefined) void this.source.read(beside);
    }
  }

  private tell(words: string): void {
    this.page.classList.remove("act-stale");
    delete this.page.dataset.feature;
    this.page.replaceChildren(make("p", { class: "act-page-words", role: "status" }, words));
  }

  private drawPage(): void {
    if (!this.sheet) {
      if (this.wanted === undefined) this.tell("Click a feature, or press Enter on it: its page opens here.");
      return;
    }
    const hooks = {
      open: (feature: number) => this.go(feature),
      say: (said: Said) => this.readOut.say(said),
      look: this.look,
    };
    this.page.classList.remove("act-stale");
    this.page.replaceChildren(pageOf(this.sheet, themeOf(this.root), hooks));
    this.page.dataset.feature = String(this.sheet.feature);
    markReady(this.root);
  }

  private showHead(): void {
    const feature = this.opened;
    this.heading.textContent = feature === undefined ? "" : `feature ${feature}`;
    this.copies.hidden = feature === undefined;
    this.link.hidden = !this.source.book.size;
    this.showSteps();
    if (feature === undefined && this.columns) this.redraw();
  }

  private showSteps(): void {
    const place = this.rows.placeOf(this.opened);
    const { back, on, up, down } = this.steps;
    back.disabled = !this.visits.has(-1);
    on.disabled = !this.visits.has(1);
    up.disabled = place === undefined || place === 0;
    down.disabled = place === undefined || place === this.rows.count - 1;
  }

  private step(by: number): void {
    const feature = this.visits.step(by);
    if (feature !== undefined) this.open(feature);
  }

  private beside(by: number): void {
    const feature = this.rows.featureAt((this.rows.placeOf(this.opened) ?? -1) + by);
    if (feature !== undefined) this.open(feature);
  }

  private holds(size: number): string {
    const words = (n: number) => n.toLocaleString("en-US");
    return `Pages of ${words(size)} of ${words(this.spec.count)} features are in this file.`;
  }

  private sayNote(): void {
    const { size } = this.source.book;
    const notes = [this.spec.absent, size && !this.kernel.alive ? this.holds(size) : "", this.spec.check];
    this.note.textContent = notes.filter(Boolean).join(" ");
    this.root.toggleAttribute("data-kernel", this.kernel.alive);
  }

  private act(act: Act): void {
    const here = this.rows.placeOf(this.model.get("pointed")?.feature);
    const to = (place: number) => {
      const feature = this.rows.featureAt(Math.min(this.rows.count - 1, Math.max(0, place)));
      if (feature === undefined) return;
      this.point(feature);
      this.rows.reveal(feature);
    };
    if (act.kind === "move" && act.y) to(here === undefined ? 0 : here + act.y);
    else if (act.kind === "turn" && act.y) to((here ?? 0) + act.y * this.rows.page);
    else if (act.kind === "turn") this.step(act.x);
    else if (act.kind === "home") to(0);
    else if (act.kind === "end") to(this.rows.count - 1);
    else if (act.kind === "pin" && here !== undefined) this.open(this.rows.featureAt(here)!);
    else if (act.kind === "copy") this.copyList();
    else if (act.kind === "clear") {
      this.slow.set("pointed", {});
      this.readOut.clear();
    }
  }

  /** A link into an exported page names its feature: `page.html#feature=17`. */
  private followLink(): void {
    const named = /^#feature=(\d+)$/.exec(location.hash);
    if (named && this.source.book.size) this.go(Number(named[1]));
  }

  private copyLink(): void {
    const place = `${location.href.replace(/#.*/, "")}#feature=${this.opened}`;
    void copyText(place, "link").then((done) => this.readOut.tell(done.replace("CSV", "Link")));
  }

  private copyList(): void {
    const rows = Array.from({ length: this.rows.count }, (_, place) => this.rows.rowAt(place));
    this.copyText(listCsv(this.columns!, rows), fileName(this.spec.title));
  }

  private copyPage(): void {
    if (this.sheet) this.copyText(pageCsv(this.sheet), `${fileName(this.spec.title)}_${this.sheet.feature}`);
  }

  private copyText(words: string, name: string): void {
    void copyText(words, name).then((done) => this.readOut.tell(done));
  }

  private async copyPng(): Promise<void> {
    if (!this.sheet) return;
    const whole = picture(this.spec.title, this.sheet, themeOf(this.root));
    this.readOut.tell(await copyPicture(whole, `${fileName(this.spec.title)}_${this.sheet.feature}`));
  }
}

export default {
  render({ model, el }: Place<State>): () => void {
    const browser = new FeatureBrowser(model, el);
    return () => browser.stop();
  },
};
