// A turn as a client lives through it: asked with one key, and asked again when the connection is lost.
//
// The server keeps a turn under its key, so asking again either fetches what was learned or learns it for the first
// time. Knows no transport: websocket and Server-Sent Events differ in how they ask.

import type { TurnEvent } from "./contract.js";
import { type ErrorObject, fromEvent, Interrupted } from "./errors.js";
import type { Patience } from "./retry.js";

/** What the server counts with where a turn names no `timeout_s`. */
export const DEFAULT_TURN_TIMEOUT_MS = 60_000;

type WireEvent = TurnEvent | { type: "error"; error: ErrorObject };

/** How one turn is asked for. */
export interface Asking {
  /** Ask for the turn; the events that come then. `again`: an attempt failed before. */
  ask(again: boolean): AsyncIterable<unknown>;
  /** Whether the caller wants the turn stopped. What became of it when its answer is lost then, nobody asks again. */
  cancelAsked(): boolean;
  patience: Patience;
  signal?: AbortSignal | undefined;
}

/** The events of one turn until its last. */
export async function* tell(asking: Asking): AsyncGenerator<TurnEvent, void> {
  let failure: unknown;
  let told = false;
  for (;;) {
    if (failure !== undefined && asking.cancelAsked()) throw failure;
    try {
      for await (const event of asking.ask(failure !== undefined) as AsyncIterable<WireEvent>) {
        if (event.type === "error") throw fromEvent(event.error);
        if (event.type === "turn.cancelled" && !asking.cancelAsked()) {
          throw new Interrupted("The server stopped in the middle of the turn; nothing was learned.");
        }
        if (told && event.type === "turn.created" && failure !== undefined) {
          yield { type: "turn.restarted", reason: String((failure as Error).message) };
        }
        told = true;
        yield event;
        if (event.type === "turn.completed" || event.type === "turn.cancelled") return;
      }
    } catch (error) {
      failure = error;
      if (asking.cancelAsked()) throw error;
      await asking.patience.wait(error, asking.signal);
    }
  }
}

/** An idempotency key nobody else has. Works on pages without HTTPS, too, where `randomUUID` does not. */
export function newKey(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `hope-client-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}
