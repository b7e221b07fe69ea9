/** Where pages come from: the file the widget is in, what was read already, or the kernel. */

import type { ArrayEntry } from "../shared/bytes.ts";
import { unpack } from "../shared/bytes.ts";
import type { Kernel } from "../shared/kernel.ts";
import { Few, type Sheet, search, sheetsOf } from "./sheet.ts";

/** Pages that stay at hand; at some ten kilobytes each. */
const KEPT = 48;

export class Source<State> {
  /** Pages that came with the widget. */
  book = new Map<number, Sheet>();
  private readonly few = new Few<Sheet>(KEPT);
  private readonly asked = new Map<number, Promise<Sheet | string>>();

  constructor(private readonly kernel: Kernel<State>) {}

  async load(view: DataView | null, bound: { arrays?: ArrayEntry[] } | undefined): Promise<void> {
    const sheets = bound?.arrays && view?.byteLength ? await sheetsOf(view, bound.arrays) : [];
    this.book = new Map(sheets.map((sheet) => [sheet.feature, sheet]));
  }

  /** A page that needs no question. */
  known(feature: number): Sheet | undefined {
    return this.book.get(feature) ?? this.few.get(feature);
  }

  /** The page of a feature, or why there is none. Never settles where nobody answers. */
  read(feature: number): Promise<Sheet | string> {
    const known = this.known(feature);
    if (known) return Promise.resolve(known);
    const before = this.asked.get(feature);
    if (before) return before;
    const asking = new Promise<Sheet | string>((done) => {
      this.kernel.ask({ ask: "page", feature }, async ({ error, arrays }, [data]) => {
        this.asked.delete(feature);
        if (typeof error === "string") return done(error);
        const [sheet] = await sheetsOf(data, arrays as ArrayEntry[]);
        this.few.set(feature, sheet);
        done(sheet);
      });
    });
    this.asked.set(feature, asking);
    return asking;
  }

  /** Features with a text among the pages of this file. */
  found(text: string): Set<number> {
    return new Set(search(this.book.values(), text));
  }

  /** Features with a text anywhere, by the kernel; or why it could not look. */
  ask(text: string): Promise<Set<number> | string> {
    return new Promise((done) => {
      this.kernel.ask({ ask: "find", text }, async ({ error, arrays }, [data]) => {
        if (typeof error === "string") return done(error);
        done(new Set((await unpack(data, arrays as ArrayEntry[])).found));
      });
    });
  }
}
