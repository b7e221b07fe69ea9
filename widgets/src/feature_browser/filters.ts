/** The line of controls over the list: search, dead features, a range on a column, a number to go to. */

import { button, choice, keepKeys, make } from "../shared/dom.ts";
import { visible } from "../shared/text.ts";
import { boundOf, type Limits } from "./list.ts";

export interface FilterHooks {
  search(text: string): void;
  hideDead(hide: boolean): void;
  limit(limits: Limits): void;
  go(feature: number): void;
}

const SEARCH_WAIT = 250;

export class Filters {
  private readonly find = make("input", {
    type: "search",
    class: "act-select act-search",
    placeholder: "search contexts and tokens",
    "aria-label": "search contexts and promoted tokens",
    maxlength: "200",
  });
  private readonly dead = make("input", { type: "checkbox" });
  private readonly deadLabel = make("label", { class: "act-label" }, this.dead, "hide dead");
  private readonly number = make("input", { type: "number", class: "act-select act-go", min: "0", step: "1" });
  private readonly goLabel = make("label", { class: "act-label" }, "go to №", this.number);
  private readonly ranges = make("span", { class: "act-ranges" });
  private readonly adding = make("span", {});
  private readonly said = make("span", { class: "act-caption", role: "status", "aria-live": "polite" });
  readonly search = make("span", { class: "act-label" }, this.find, this.said);
  readonly more = [this.deadLabel, this.adding, this.ranges, this.goLabel];
  private timer: ReturnType<typeof setTimeout> | undefined;
  private drawn = "";
  private limits: Limits = {};

  constructor(private readonly hooks: FilterHooks) {
    for (const control of [this.find, this.dead, this.number]) keepKeys(control);
    const send = () => {
      clearTimeout(this.timer);
      hooks.search(this.find.value);
    };
    this.find.addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(send, SEARCH_WAIT);
    });
    this.find.addEventListener("keydown", (event) => event.key === "Enter" && send());
    this.dead.addEventListener("change", () => hooks.hideDead(this.dead.checked));
    this.number.addEventListener("keydown", (event) => event.key === "Enter" && this.go());
    this.number.addEventListener("change", () => this.go());
  }

  stop(): void {
    clearTimeout(this.timer);
  }

  /** What the traits say now; a box that is being typed into keeps what it holds. */
  show(names: readonly string[], dead: string, state: { query: string; hideDead: boolean; limits: Limits }): void {
    if (document.activeElement !== this.find) this.find.value = state.query;
    this.dead.checked = state.hideDead;
    this.deadLabel.hidden = !dead;
    this.limits = state.limits;
    // Boxes stay while the same columns have a range: the reader may be on the way from one to the next.
    const drawn = JSON.stringify([names, Object.keys(state.limits)]);
    if (drawn !== this.drawn) this.drawRanges(names);
    this.drawn = drawn;
    for (const box of this.ranges.querySelectorAll<HTMLInputElement>("input")) {
      const now = this.limits[box.dataset.column!]?.[Number(box.dataset.side)];
      if (document.activeElement !== box) box.value = now === null || now === undefined ? "" : String(now);
    }
  }

  private drawRanges(names: readonly string[]): void {
    const open = names.filter((name) => !this.limits[name]);
    const add = (at: number) => {
      if (at === 0) return;
      this.hooks.limit({ ...this.limits, [open[at - 1]]: [null, null] });
      this.ranges.querySelector<HTMLInputElement>(".act-range:last-of-type input")?.focus();
    };
    this.adding.replaceChildren(choice("range of", ["…", ...open.map(visible)], 0, add));
    this.adding.hidden = !open.length;
    this.ranges.replaceChildren(...Object.keys(this.limits).map((name) => this.range(name)));
  }

  /** A word on the search: under way, or where it looked. */
  say(words: string): void {
    this.said.textContent = words;
  }

  private go(): void {
    if (this.number.value === "") return;
    this.hooks.go(Number(this.number.value));
    this.number.value = "";
  }

  private range(name: string): HTMLElement {
    const drop = button("×", `No range of ${name}`, () => {
      const { [name]: _, ...rest } = this.limits;
      this.hooks.limit(rest);
    });
    const [low, high] = [this.bound(name, 0), this.bound(name, 1)];
    return make("span", { class: "act-label act-range" }, low, `≤ ${visible(name)} ≤`, high, drop);
  }

  private bound(name: string, side: 0 | 1): HTMLElement {
    const words = `${side ? "largest" : "smallest"} ${name}`;
    const box = make("input", { class: "act-select act-bound", placeholder: side ? "max" : "min" });
    for (const [key, value] of Object.entries({ "aria-label": words, title: words })) box.setAttribute(key, value);
    Object.assign(box.dataset, { column: name, side: String(side) });
    keepKeys(box);
    box.addEventListener("change", () => {
      const bound = boundOf(box.value);
      box.setAttribute("aria-invalid", String(bound === undefined));
      if (bound === undefined) return;
      const changed: [number | null, number | null] = [...this.limits[name]];
      changed[side] = bound;
      this.hooks.limit({ ...this.limits, [name]: changed });
    });
    return box;
  }
}
