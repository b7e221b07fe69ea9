/** One set of keys for every widget: arrows move, shift moves by ten, + - 0 zoom, Enter pins, c copies, p goes to the peak. */

export type Act =
  | { kind: "move"; x: number; y: number }
  | { kind: "zoom"; by: number }
  | { kind: "turn"; x: number; y: number }
  | { kind: "reset" | "pin" | "copy" | "home" | "end" | "clear" | "peak" };

const ARROWS: Record<string, [number, number]> = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, -1],
  ArrowDown: [0, 1],
};
const PLAIN: Record<string, Act> = {
  "+": { kind: "zoom", by: 1.5 },
  "=": { kind: "zoom", by: 1.5 },
  "-": { kind: "zoom", by: 1 / 1.5 },
  "0": { kind: "reset" },
  Enter: { kind: "pin" },
  " ": { kind: "pin" },
  c: { kind: "copy" },
  p: { kind: "peak" },
  Home: { kind: "home" },
  End: { kind: "end" },
  Escape: { kind: "clear" },
};

type Pressed = Pick<KeyboardEvent, "key" | "shiftKey" | "ctrlKey" | "metaKey" | "altKey">;

/** What this key press asks for, or nothing. `more`: keys that only this widget knows. */
export function actOf(event: Pressed, more: Record<string, Act> = {}): Act | undefined {
  // Ctrl+C and friends stay with the browser.
  if (event.ctrlKey || event.metaKey || event.altKey) return undefined;
  const arrow = ARROWS[event.key];
  const step = event.shiftKey ? 10 : 1;
  return arrow ? { kind: "move", x: arrow[0] * step, y: arrow[1] * step } : (PLAIN[event.key] ?? more[event.key]);
}

/** Hear keys on a focused plot. Propagation stops, or the notebook's command mode would act on them as well. */
export function hearKeys(plot: HTMLElement, act: (act: Act) => void, more: Record<string, Act> = {}): void {
  plot.addEventListener("keydown", (event) => {
    const meant = actOf(event, more);
    if (!meant) return;
    event.preventDefault();
    event.stopPropagation();
    act(meant);
  });
}
