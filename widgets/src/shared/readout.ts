/** The line under a plot that says what is pointed at; screen readers hear it. */

import { make } from "./dom.ts";

/** Name and words, `["layer", "3"]`; the last pair is the value. */
export type Said = readonly (readonly [string, string])[];

export class ReadOut {
  readonly element = make("div", { class: "act-readout", role: "status", "aria-live": "polite" });

  constructor(private readonly rest: string) {
    this.clear();
  }

  say(said: Said): void {
    const pieces = said.flatMap(([name, words], index) => [
      ...(index ? [make("span", { class: "act-name" }, " · ")] : []),
      make("span", { class: "act-name" }, `${name} `),
      make("span", { class: index === said.length - 1 ? "act-value" : "act-place" }, words),
    ]);
    this.element.replaceChildren(...pieces);
  }

  /** A passing message, for instance after copying. */
  tell(words: string): void {
    this.element.replaceChildren(words);
  }

  clear(): void {
    this.element.replaceChildren(make("span", { class: "act-name" }, this.rest));
  }
}

/** One line of plain words for a pin list or a title. */
export function sentence(said: Said): string {
  return said.map(([name, words]) => `${name} ${words}`).join(" · ");
}
