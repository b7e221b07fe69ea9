import { expect, it, vi } from "vitest";
import { decode, PageModel } from "./model.ts";

it("tells listeners of changes, once, and only of changes", () => {
  const model = new PageModel({ a: 1 });
  const heard = vi.fn();
  model.on("change:a", heard);
  model.set("a", 1);
  model.set("a", 2);
  model.set("a", 2);
  expect(heard).toHaveBeenCalledTimes(1);
  model.off("change:a", heard);
  model.set("a", 3);
  expect(heard).toHaveBeenCalledTimes(1);
  expect(model.get("a")).toBe(3);
});

it("does not loop when two models follow each other", () => {
  const [a, b] = [new PageModel({ spot: {} }), new PageModel({ spot: {} })];
  a.on("change:spot", () => b.set("spot", { ...(a.get("spot") as object) }));
  b.on("change:spot", () => a.set("spot", { ...(b.get("spot") as object) }));
  a.set("spot", { position: 3 });
  expect(b.get("spot")).toEqual({ position: 3 });
});

it("decodes bytes", () => {
  expect(new Uint8Array(decode("AAEC").buffer)).toEqual(Uint8Array.of(0, 1, 2));
});
