/** The line over the plot: a list or slider for every leading axis, the colour range, and buttons. */

import { button, choice, make, slider } from "../shared/dom.ts";
import type { Act } from "../shared/keyboard.ts";
import { span } from "../shared/numbers.ts";
import { type Axis, labelOf } from "./scene.ts";

/** Longer axes get a slider: a list of a hundred entries is no help. */
const LISTED = 40;

export interface Wishes {
  slice(axis: number, index: number): void;
  range(name: string): void;
  act(act: Act): void;
  picture(): void;
}

/** Show these indices in the controls of the leading axes. */
export type Follow = (leading: readonly number[]) => void;

export function fillControls(
  place: HTMLElement,
  axes: readonly Axis[],
  ranges: Record<string, [number, number]>,
  clip: string,
  wish: Wishes,
): Follow {
  const chosen = axes.map((axis, at) => axisControl(axis, (index) => wish.slice(at, index)));
  const kinds = Object.keys(ranges);
  const words = kinds.map((kind) => `${kind}: ${span(ranges[kind])}`);
  const colours = choice("colours", words, Math.max(0, kinds.indexOf(clip)), (index) => wish.range(kinds[index]));
  const buttons = [
    button("−", "Zoom out", () => wish.act({ kind: "zoom", by: 1 / 1.5 })),
    button("+", "Zoom in", () => wish.act({ kind: "zoom", by: 1.5 })),
    button("Fit", "Show the whole grid", () => wish.act({ kind: "reset" })),
    button("Peak", "Go to the value furthest from 0", () => wish.act({ kind: "peak" })),
    button("PNG", "Copy the picture", wish.picture),
    button("CSV", "Copy the visible cells", () => wish.act({ kind: "copy" })),
  ];
  place.append(...chosen.map(({ element }) => element), ...(kinds.length > 1 ? [colours] : []));
  place.append(make("span", { class: "act-push" }, ...buttons));
  return (leading) => {
    for (const [at, index] of leading.entries()) chosen[at].follow(index);
  };
}

function axisControl(axis: Axis, changed: (index: number) => void) {
  const say = (index: number) => labelOf(axis, index);
  if (axis.count <= LISTED) {
    const names = Array.from({ length: axis.count }, (_, index) => say(index));
    const element = choice(axis.name, names, 0, changed);
    const list = element.querySelector("select")!;
    const follow = (index: number) => {
      list.selectedIndex = index;
    };
    return { element, follow };
  }
  const element = slider(axis.name, [0, axis.count - 1], 0, say, changed);
  const follow = (index: number) => {
    element.querySelector("input")!.value = String(index);
    element.querySelector("output")!.textContent = say(index);
  };
  return { element, follow };
}
