/** Brings the widgets of an exported page to life, from the widget state that Jupyter saves, without a network. */

import { decode, PageModel } from "./model.ts";

interface Saved {
  model_name: string;
  state: Record<string, unknown>;
  buffers?: { path: string[]; data: string }[];
}
/** `assets`: every module and stylesheet once, by the key that `_esm` and `_css` carry instead of their text. */
interface Page {
  state: Record<string, Saved>;
  assets: Record<string, string>;
}
interface Widget {
  initialize?(place: { model: PageModel }): unknown;
  render?(place: { model: PageModel; el: HTMLElement }): unknown;
}

const REF = "IPY_MODEL_";

function read(page: Page): Map<string, PageModel> {
  const models = new Map<string, PageModel>();
  for (const [id, { state, buffers }] of Object.entries(page.state)) {
    for (const { path, data } of buffers ?? []) state[path[0]] = decode(data);
    models.set(id, new PageModel(state));
  }
  return models;
}

/** Carry a trait from one model to another, as ipywidgets' jslink and jsdlink do. */
function link(models: Map<string, PageModel>, { model_name, state }: Saved): void {
  const end = (name: string) => {
    const [ref, trait] = state[name] as [string, string];
    return { model: models.get(ref.replace(REF, "")), trait };
  };
  const carry = (from: ReturnType<typeof end>, to: ReturnType<typeof end>) =>
    from.model?.on(`change:${from.trait}`, () => to.model?.set(to.trait, from.model!.get(from.trait)));
  carry(end("source"), end("target"));
  if (model_name === "LinkModel") carry(end("target"), end("source"));
}

/** A module of the page as a widget, loaded once however many widgets use it. */
function load(page: Page, modules: Map<string, Promise<Widget>>, key: string): Promise<Widget> {
  if (!modules.has(key)) {
    // A blob, because a page opened from disk may not import its neighbours.
    const url = URL.createObjectURL(new Blob([page.assets[key]], { type: "text/javascript" }));
    modules.set(
      key,
      import(url).then(({ default: made }) => (typeof made === "function" ? made() : made)),
    );
  }
  return modules.get(key)!;
}

/** Draw a model into an element: one of our widgets, a box of them, or markup that Python wrote. */
async function revive(el: HTMLElement, id: string, modules: Map<string, Promise<Widget>>): Promise<void> {
  const model = models.get(id.replace(REF, ""))!;
  const children = model.get("children");
  if (Array.isArray(children)) {
    const places = children.map(() => document.createElement("div"));
    el.replaceChildren(...places);
    await Promise.all(children.map((child, at) => revive(places[at], child, modules)));
  } else if (model.get("_esm")) {
    const widget = await load(page, modules, String(model.get("_esm")));
    await widget.initialize?.({ model });
    el.replaceChildren();
    await widget.render?.({ model, el });
  } else {
    // The page's policy lets no script in this markup run; parsing it apart also keeps it from loading anything.
    const parsed = new DOMParser().parseFromString(String(model.get("value") ?? ""), "text/html");
    el.replaceChildren(...parsed.body.childNodes);
  }
}

function dress(page: Page, models: Map<string, PageModel>): void {
  const keys = new Set([...models.values()].map((model) => String(model.get("_css"))));
  for (const key of keys) {
    if (!page.assets[key]) continue;
    const sheet = document.createElement("style");
    sheet.textContent = page.assets[key];
    document.head.append(sheet);
  }
}

const page: Page = JSON.parse(document.getElementById("activarium-state")!.textContent!);
const models = read(page);
dress(page, models);
for (const saved of Object.values(page.state))
  if (/^(Directional)?LinkModel$/.test(saved.model_name)) link(models, saved);
const modules = new Map<string, Promise<Widget>>();
// One widget that cannot start keeps its picture and leaves the others alone.
for (const element of document.querySelectorAll<HTMLElement>("[data-widget]"))
  revive(element, element.dataset.widget!, modules).catch((error) => console.error("activarium:", error));
