/** Questions to the kernel, which may be absent (exported page), asleep, or busy: nobody waits for an answer to draw. */

import type { Listeners, Model } from "./model.ts";

interface Answer {
  id: number;
  [detail: string]: unknown;
}

export class Kernel<State> {
  /** True once the kernel has answered anything. Assumed by nobody, measured by the first ping. */
  alive = false;
  private last = 0;
  private readonly waiting = new Map<number, (answer: Answer, buffers: DataView[]) => void>();

  constructor(
    private readonly model: Model<State>,
    listeners: Listeners,
  ) {
    listeners.to(model, "msg:custom", (answer: Answer, buffers: DataView[]) => {
      this.alive = true;
      this.waiting.get(answer.id)?.(answer, buffers ?? []);
      this.waiting.delete(answer.id);
    });
  }

  /** Ask, and hear the answer if one ever comes. Returns the number of the question. */
  ask(question: Record<string, unknown>, heard: (answer: Answer, buffers: DataView[]) => void): number {
    const id = ++this.last;
    this.waiting.set(id, heard);
    this.model.send({ ...question, id });
    return id;
  }

  /** Wake the message path early: the first message of a session may have to wait for a running cell. */
  ping(heard: () => void): void {
    this.ask({ ask: "ping" }, heard);
  }
}
