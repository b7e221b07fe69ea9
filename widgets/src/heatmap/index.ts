/** Heatmap: a grid of numbers with named axes, and nothing around it. */

import "./style.css";
import type { Place } from "../shared/model.ts";
import { Heatmap, type State } from "./heatmap.ts";

export default {
  render({ model, el }: Place<State>): () => void {
    const heatmap = new Heatmap(model, el);
    return () => heatmap.stop();
  },
};
