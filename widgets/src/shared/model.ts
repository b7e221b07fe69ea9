/** Who holds a widget's state: Jupyter while a kernel runs, the small host of an exported page afterwards. */

// biome-ignore lint/suspicious/noExplicitAny: listeners take whatever their event carries
export type Heard = (...details: any[]) => void;

/** The five calls that every host offers; keeping to them lets our widgets run outside Jupyter too. */
export interface Model<State> {
  get<Name extends keyof State & string>(name: Name): State[Name];
  set<Name extends keyof State & string>(name: Name, value: State[Name]): void;
  save_changes(): void;
  send(content: unknown): void;
  on(event: string, heard: Heard): void;
  off(event: string, heard: Heard): void;
}

export interface Place<State> {
  model: Model<State>;
  el: HTMLElement;
}

/** Index along each axis, by axis name: what is pointed at or pinned. */
export type Spot = Record<string, number>;

/** A list of listeners that can be taken back at once. */
export class Listeners {
  private readonly undo: (() => void)[] = [];

  /** Hear changes of the model. */
  to<State>(model: Model<State>, event: string, heard: Heard): void {
    model.on(event, heard);
    this.undo.push(() => model.off(event, heard));
  }

  /** Run this when the widget leaves the page. */
  finally(last: () => void): void {
    this.undo.push(last);
  }

  stop(): void {
    for (const last of this.undo.splice(0)) last();
  }
}

/**
 * Write a trait now, tell the kernel soon: a hover sends at most one message per `wait` milliseconds.
 *
 * The kernel echoes what it was told. An echo that comes while something newer waits to be told would set the reader back
 * a step, so until then the newer value is put back.
 */
export function patient<State>(model: Model<State>, wait = 60): { set: Model<State>["set"]; stop: () => void } {
  const waiting = new Map<keyof State & string, unknown>();
  let timer: ReturnType<typeof setTimeout> | undefined;
  const keep = () => {
    for (const [name, value] of waiting) if (model.get(name) !== value) model.set(name, value as State[typeof name]);
  };
  const tell = () => {
    timer = undefined;
    waiting.clear();
    model.save_changes();
  };
  model.on("change", keep);
  const set: Model<State>["set"] = (name, value) => {
    waiting.set(name, value);
    model.set(name, value);
    timer ??= setTimeout(tell, wait);
  };
  const stop = () => {
    clearTimeout(timer);
    model.off("change", keep);
  };
  return { set, stop };
}

export function sameSpot<Of extends Record<string, unknown>>(a: Of, b: Of): boolean {
  const names = Object.keys(a);
  return names.length === Object.keys(b).length && names.every((name) => a[name] === b[name]);
}

/** The pins with this one added, or taken away if it was there. */
export function toggled<Of extends Record<string, unknown>>(pins: readonly Of[], spot: Of): Of[] {
  const rest = pins.filter((pin) => !sameSpot(pin, spot));
  return rest.length < pins.length ? rest : [...pins, spot];
}
