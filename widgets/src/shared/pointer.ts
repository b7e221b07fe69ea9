/** Mouse and pen on the plot: hover, click, drag and wheel, told apart once for the whole widget. */

export interface Point {
  x: number;
  y: number;
}

export interface Gestures {
  hover(point: Point): void;
  click(point: Point): void;
  drag(dx: number, dy: number): void;
  /** Left out where there is nothing to zoom: the wheel then scrolls the page. */
  zoom?(by: number, point: Point): void;
}

/** A hand is not steady: less than this is a click, not a drag. */
const STILL = 4;

export function hearPointer(plot: HTMLElement, gestures: Gestures): void {
  let held: (Point & { moved: boolean }) | undefined;
  const point = (event: MouseEvent): Point => {
    const frame = plot.getBoundingClientRect();
    return { x: event.clientX - frame.left, y: event.clientY - frame.top };
  };
  plot.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    held = { x: event.clientX, y: event.clientY, moved: false };
    plot.setPointerCapture(event.pointerId);
  });
  plot.addEventListener("pointermove", (event) => {
    if (!held) return gestures.hover(point(event));
    const [dx, dy] = [event.clientX - held.x, event.clientY - held.y];
    if (!held.moved && Math.hypot(dx, dy) < STILL) return;
    held = { x: event.clientX, y: event.clientY, moved: true };
    gestures.drag(dx, dy);
  });
  plot.addEventListener("pointerup", (event) => {
    if (held && !held.moved) gestures.click(point(event));
    held = undefined;
  });
  plot.addEventListener("pointercancel", () => {
    held = undefined;
  });
  const { zoom } = gestures;
  if (!zoom) return;
  // The notebook keeps its scrolling: the wheel zooms only with ctrl, or while the plot has the focus.
  const wheel = (event: WheelEvent) => {
    if (!event.ctrlKey && !event.metaKey && document.activeElement !== plot) return;
    event.preventDefault();
    zoom(2 ** (-event.deltaY / 240), point(event));
  };
  plot.addEventListener("wheel", wheel, { passive: false });
}
