/** Elements without markup: text goes in as text, so nothing from a model or data set can become a tag. */

import { shareOf } from "./colours.ts";
import type { Listeners } from "./model.ts";

type Child = Node | string;

/** An element with attributes and children; strings become text nodes. */
export function make<Tag extends keyof HTMLElementTagNameMap>(
  tag: Tag,
  attributes: Record<string, string> = {},
  ...children: Child[]
): HTMLElementTagNameMap[Tag] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function button(words: string, help: string, pressed: () => void): HTMLButtonElement {
  const element = make("button", { type: "button", class: "act-button", title: help, "aria-label": help }, words);
  element.addEventListener("click", pressed);
  return element;
}

/** A labelled list to choose one of. */
export function choice(
  label: string,
  options: readonly string[],
  chosen: number,
  changed: (index: number) => void,
): HTMLLabelElement {
  const list = make("select", { class: "act-select" }, ...options.map((words) => make("option", {}, words)));
  list.selectedIndex = chosen;
  list.addEventListener("change", () => changed(list.selectedIndex));
  keepKeys(list);
  return make("label", { class: "act-label" }, label, list);
}

/** A labelled slider over whole steps; `say` turns the number into words beside it. */
export function slider(
  label: string,
  [low, high]: readonly [number, number],
  start: number,
  say: (value: number) => string,
  changed: (value: number) => void,
): HTMLLabelElement {
  const bar = make("input", { type: "range", class: "act-slider", min: `${low}`, max: `${high}`, step: "1" });
  const words = make("output", { class: "act-output" }, say(start));
  bar.value = String(start);
  bar.addEventListener("input", () => {
    words.textContent = say(Number(bar.value));
    changed(Number(bar.value));
  });
  keepKeys(bar);
  return make("label", { class: "act-label" }, label, bar, words);
}

/** Keys typed into a control stay there; a notebook's command mode must not see them. */
export function keepKeys(control: HTMLElement): void {
  control.addEventListener("keydown", (event) => event.stopPropagation());
}

/** Mark the widget as drawn, two animation frames later, when its pixels are on the screen. */
export function markReady(root: HTMLElement): void {
  requestAnimationFrame(() => requestAnimationFrame(() => root.setAttribute("data-ready", "true")));
}

/** A function that runs at most once per animation frame, however often it is asked. */
export function onceAFrame(run: () => void): () => void {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      run();
    });
  };
}

/** Call back when the element's width changes. */
export function onWidth(element: HTMLElement, listeners: Listeners, changed: (width: number) => void): void {
  let last = 0;
  const watcher = new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (!width || width === last) return;
    last = width;
    changed(width);
  });
  watcher.observe(element);
  listeners.finally(() => watcher.disconnect());
}

/** A canvas of this many CSS pixels, sharp on the screen it is on. */
export function sized(
  canvas: HTMLCanvasElement,
  width: number,
  height: number,
  density: number,
): CanvasRenderingContext2D {
  canvas.width = Math.round(width * density);
  canvas.height = Math.round(height * density);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const brush = canvas.getContext("2d")!;
  brush.setTransform(density, 0, 0, density, 0, 0);
  return brush;
}

/** Where on a bar of this length a value stands. */
export function along(value: number, range: readonly [number, number], length: number): number {
  return Math.min(1, Math.max(0, shareOf(value, range))) * length;
}
