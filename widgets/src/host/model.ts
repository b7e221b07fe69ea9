/** The state of one widget in a page without a kernel: what our widgets call, and nothing more. */

import { bytesOf } from "../shared/bytes.ts";
import type { Heard, Model } from "../shared/model.ts";

type State = Record<string, unknown>;

export class PageModel implements Model<State> {
  private readonly listeners = new Map<string, Set<Heard>>();

  constructor(private readonly state: State) {}

  get<Name extends string>(name: Name): State[Name] {
    return this.state[name];
  }

  set<Name extends string>(name: Name, value: State[Name]): void {
    if (same(this.state[name], value)) return;
    this.state[name] = value;
    this.tell(`change:${name}`, this, value);
    this.tell("change", this);
  }

  /** There is nobody to save to; links have heard of the change already. */
  save_changes(): void {}

  /** Questions to a kernel stay unanswered, which widgets expect. */
  send(): void {}

  on(event: string, heard: Heard): void {
    const known = this.listeners.get(event) ?? new Set();
    this.listeners.set(event, known.add(heard));
  }

  off(event: string, heard?: Heard): void {
    if (heard) this.listeners.get(event)?.delete(heard);
    else this.listeners.delete(event);
  }

  private tell(event: string, ...details: unknown[]): void {
    for (const heard of [...(this.listeners.get(event) ?? [])]) heard(...details);
  }
}

/** Equal by content, so that two linked models do not answer each other for ever. */
function same(a: unknown, b: unknown): boolean {
  return a === b || (!ArrayBuffer.isView(a) && !ArrayBuffer.isView(b) && JSON.stringify(a) === JSON.stringify(b));
}

/** Base64 text to a DataView, as Jupyter hands bytes over. */
export function decode(text: string): DataView {
  const bytes = bytesOf(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)));
  return new DataView(bytes.buffer);
}
