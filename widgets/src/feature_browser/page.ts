/** The page of one feature: figures, histogram, tokens, neighbours, contexts. */

import { signColours } from "../shared/colours.ts";
import { make, sized } from "../shared/dom.ts";
import { hearKeys } from "../shared/keyboard.ts";
import { short } from "../shared/numbers.ts";
import type { Said } from "../shared/readout.ts";
import { visible } from "../shared/text.ts";
import type { Theme } from "../shared/theme.ts";
import { contextsOf, type Look } from "./contexts.ts";
import { barAt, bars, barWords, shares } from "./draw.ts";
import { roving } from "./roving.ts";
import { brief, type Others, precisely, type Sheet, type Tokens } from "./sheet.ts";

export interface PageHooks {
  open(feature: number): void;
  say(said: Said): void;
  look: Look;
}

const BOX = { x: 4, y: 4, width: 200, height: 86 };

/** What a page holds below its head; a part that is not known is not there. */
export function pageOf(sheet: Sheet, theme: Theme, hooks: PageHooks): HTMLElement {
  const page = make("div", { class: "act-sheet" }, figures(sheet.figures, hooks.say));
  const row = make("div", { class: "act-sheet-row" });
  if (sheet.histogram) row.append(histogram(sheet.histogram, theme, hooks.say));
  for (const name of ["promoted", "suppressed"] as const)
    if (sheet[name]?.words.length) row.append(tokens(name, sheet[name]!, theme, hooks.say));
  page.append(row);
  for (const [name, words] of [
    ["neighbours", "alike in direction"],
    ["together", "fire together"],
    ["correlated", "correlated"],
  ] as const)
    if (sheet[name]?.numbers.length) page.append(others(words, sheet[name]!, hooks));
  if (sheet.neurons?.numbers.length) page.append(neurons(sheet.neurons, hooks.say));
  if (sheet.contexts?.length) page.append(contextsOf(sheet.contexts, "", hooks.look, theme.dark, hooks.say));
  else page.append(make("p", { class: "act-caption" }, "No context of this feature is known."));
  return page;
}

/** Short words here, the exact ones in the read-out. */
function figures(list: Sheet["figures"], say: (said: Said) => void): HTMLElement {
  const said = new Map<HTMLElement, Said>();
  const pairs = list.map(([name, value]) => {
    const number = typeof value === "number";
    const words = number ? brief(value) : visible(String(value));
    const item = make("span", { class: "act-figure" }, make("span", { class: "act-name" }, `${visible(name)} `), words);
    said.set(item, [[visible(name), number ? precisely(value) : words]]);
    return item;
  });
  const box = make("div", { class: "act-figures", role: "group", "aria-label": "figures" }, ...pairs);
  roving(box, ".act-figure", (item) => say(said.get(item)!));
  return box;
}

function section(title: string, ...inside: HTMLElement[]): HTMLElement {
  return make("section", { class: "act-part", "aria-label": title }, make("b", {}, title), ...inside);
}

/** A name and what stands behind it, on one line that scrolls sideways. */
function lineOf(title: string, list: HTMLElement): HTMLElement {
  return make("section", { class: "act-line", "aria-label": title }, make("b", {}, title), list);
}

function histogram(
  { edges, counts }: NonNullable<Sheet["histogram"]>,
  theme: Theme,
  say: (said: Said) => void,
): HTMLElement {
  const canvas = make("canvas", { class: "act-histogram", tabindex: "0", role: "application" });
  canvas.setAttribute(
    "aria-label",
    `histogram of ${counts.length} bins from ${short(edges[0])}; left and right walk them`,
  );
  let cursor: number | undefined;
  const draw = () => drawHistogram(canvas, counts, theme, cursor);
  const point = (at: number | undefined) => {
    if (at === undefined) return;
    cursor = at;
    draw();
    const [span, count] = barWords(edges, counts, at);
    say([
      ["activation", span],
      ["count", count],
    ]);
  };
  canvas.addEventListener("pointermove", (event) => point(barAt(event.offsetX, counts.length, BOX)));
  hearKeys(canvas, (act) => {
    if (act.kind === "move" && act.x) point(Math.min(counts.length - 1, Math.max(0, (cursor ?? -act.x) + act.x)));
  });
  draw();
  const ends = make(
    "div",
    { class: "act-ends" },
    make("span", {}, short(edges[0])),
    make("span", {}, short(edges.at(-1)!)),
  );
  return section("activations (log counts)", canvas, ends);
}

export function drawHistogram(
  canvas: HTMLCanvasElement,
  counts: ArrayLike<number> & Iterable<number>,
  theme: Theme,
  cursor?: number,
): void {
  const brush = sized(canvas, BOX.width + 2 * BOX.x, BOX.height + 2 * BOX.y, devicePixelRatio || 1);
  const floor = BOX.y + BOX.height;
  const { below, above } = signColours(theme.dark);
  bars(Float64Array.from(counts), BOX).forEach(({ x, width, height }, at) => {
    brush.fillStyle = at === cursor ? above : below;
    brush.fillRect(x, floor - height, width, height);
  });
  brush.fillStyle = theme.muted;
  brush.fillRect(BOX.x, floor, BOX.width, 1);
}

/** Tokens on bars as long as their share of the largest. */
function tokens(title: string, { words, values }: Tokens, theme: Theme, say: (said: Said) => void): HTMLElement {
  const { below, above } = signColours(theme.dark);
  const list = make("ul", { class: "act-token-list" });
  const long = shares(values);
  const said = new Map<HTMLElement, Said>();
  words.forEach((word, at) => {
    const line = make("li", {}, make("span", { class: "act-token-word" }, visible(word)));
    line.style.setProperty("--share", `${Math.round(100 * Math.abs(long[at]))}%`);
    line.style.setProperty("--bar", long[at] < 0 ? below : above);
    line.append(make("span", { class: "act-token-value" }, short(values[at])));
    said.set(line, [
      [title, `“${visible(word)}”`],
      ["logit", precisely(values[at])],
    ]);
    list.append(line);
  });
  roving(list, "li", (line) => say(said.get(line)!));
  return section(title, list);
}

function others(title: string, { numbers, values }: Others, { open, say }: PageHooks): HTMLElement {
  const list = make("div", { class: "act-others" });
  const said = new Map<HTMLElement, Said>();
  numbers.forEach((feature, at) => {
    const words = [make("span", {}, `№ ${feature}`), make("span", { class: "act-token-value" }, short(values[at]))];
    const go = make(
      "button",
      { type: "button", class: "act-button act-other", title: `open feature ${feature}` },
      ...words,
    );
    go.addEventListener("click", () => open(feature));
    said.set(go, [
      ["feature", String(feature)],
      [title, precisely(values[at])],
    ]);
    list.append(go);
  });
  roving(list, "button", (go) => say(said.get(go)!));
  return lineOf(title, list);
}

function neurons({ numbers, values }: Others, say: (said: Said) => void): HTMLElement {
  const list = make("ul", { class: "act-neurons" });
  const said = new Map<HTMLElement, Said>();
  numbers.forEach((neuron, at) => {
    const line = make("li", {}, `neuron ${neuron} `, make("span", { class: "act-token-value" }, short(values[at])));
    said.set(line, [
      ["neuron", String(neuron)],
      ["figure", precisely(values[at])],
    ]);
    list.append(line);
  });
  roving(list, "li", (line) => say(said.get(line)!));
  return lineOf("neurons", list);
}
