/** Many things that can be focused behind one tab stop: arrows walk from one to the next. */

const STEPS: Record<string, number> = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 };

/**
 * Let arrow keys walk over the items of a box; `arrived` hears where mouse or keys are.
 *
 * `jump`: left and right go from item to item, up and down to the nearest item of this kind.
 */
export function roving(box: HTMLElement, items: string, arrived: (item: HTMLElement) => void, jump = items): void {
  const all = (kind: string) => [...box.querySelectorAll<HTMLElement>(kind)];
  for (const [at, item] of all(items).entries()) item.tabIndex = at ? -1 : 0;
  const itemOf = (event: Event) => (event.target as HTMLElement).closest<HTMLElement>(items) ?? undefined;
  const focus = (item: HTMLElement | undefined) => {
    if (!item) return;
    for (const other of box.querySelectorAll<HTMLElement>('[tabindex="0"]')) other.tabIndex = -1;
    item.tabIndex = 0;
    item.focus({ preventScroll: true });
    item.scrollIntoView({ block: "nearest", inline: "nearest" });
  };
  box.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const here = itemOf(event);
    const step = STEPS[event.key];
    if (!here) return;
    if (step) {
      const kind = event.key.endsWith("Up") || event.key.endsWith("Down") ? jump : items;
      focus(next(all(kind), here, step));
    } else if (event.key === "Home" || event.key === "End") focus(all(items).at(event.key === "Home" ? 0 : -1));
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  const arrive = (event: Event) => {
    const item = itemOf(event);
    if (item) arrived(item);
  };
  onMove(box, arrive);
  box.addEventListener("focusin", arrive);
}

/** Hear a mouse that moves. One that rests while the page scrolls under it would take the cursor from the keys. */
export function onMove(box: HTMLElement, heard: (event: PointerEvent) => void): void {
  let [x, y] = [Number.NaN, Number.NaN];
  box.addEventListener("pointermove", (event) => {
    if (event.screenX === x && event.screenY === y) return;
    [x, y] = [event.screenX, event.screenY];
    heard(event);
  });
}

/** The nearest thing of a kind before or after this one. */
function next(kind: readonly HTMLElement[], here: HTMLElement, step: number): HTMLElement | undefined {
  const side = step > 0 ? Node.DOCUMENT_POSITION_FOLLOWING : Node.DOCUMENT_POSITION_PRECEDING;
  const beyond = kind.filter((item) => here.compareDocumentPosition(item) & side);
  return step > 0 ? beyond[0] : beyond.at(-1);
}
