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

/** Write a trait now, tell the kernel soon: a hover sends at most one message per `wait` milliseconds. */
export function patient<State>(model: Model<State>, wait = 60): { set: Model<State>["set"]; stop: () => void } {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const set: Model<State>["set"] = (name, value) => {
    model.set(name, value);
    timer ??= setTimeout(() => {
      timer = undefined;
      model.save_changes();
    }, wait);
  };
  return { set, stop: () => clearTimeout(timer) };
}

export function sameSpot(a: Spot, b: Spot): boolean {
  const names = Object.keys(a);
  return names.length === Object.keys(b).length && names.every((name) => a[name] === b[name]);
}

/** The pins with this one added, or taken away if it was there. */
export function toggled(pins: readonly Spot[], spot: Spot): Spot[] {
  const rest = pins.filter((pin) => !sameSpot(pin, spot));
  return rest.length < pins.length ? rest : [...pins, spot];
}
