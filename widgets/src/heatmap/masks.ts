/** What a mask looks like, on the map and in the legend: blank for what is no row, lines for everything else. */

import { make } from "../shared/dom.ts";

/** `up`: lines like /, for what is known to be exactly 0. `down`: lines like \\, for any other mask. */
export type Look = "blank" | "up" | "down";

/** The names that analyses agree on. */
export const KNOWN_ZERO = "known_zero";
export const NO_ROW = "no_row";

const WORDS: Record<string, string> = {
  [KNOWN_ZERO]: "exactly 0, known without a run",
  [NO_ROW]: "no such token or patch",
};

/** One look per mask, in the order of their bits. */
export function looksOf(masks: readonly string[]): Look[] {
  return masks.map((name) => (name === NO_ROW ? "blank" : name === KNOWN_ZERO ? "up" : "down"));
}

/** A mask's name as words: underscores are for code. */
export function maskWords(name: string): string {
  return name.replaceAll("_", " ");
}

/** A little sample of each look beside what it means. */
export function maskLegend(masks: readonly string[]): HTMLElement[] {
  return masks.map((name, at) => {
    const sample = make("span", { class: `act-sample act-sample-${looksOf(masks)[at]}`, "aria-hidden": "true" });
    return make("span", { class: "act-legend" }, sample, WORDS[name] ?? maskWords(name));
  });
}
