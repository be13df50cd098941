// When a request is made again: a bounded number of times, never past its deadline, never against the server's word.
//
// Knows no transport: errors in, waiting out.

import { ConnectionLost, HopeRequestError } from "./errors.js";

const FIRST_WAIT_MS = 250;
const LONGEST_WAIT_MS = 8000;

/** What is left of it for one request. */
export class Patience {
  private failed = 0;
  private readonly deadline: number;

  /**
   * @param maxAttempts how often the request may be made in all
   * @param limitMs from now, after which it is not made again
   * @param once asking twice does no more than asking once, so a lost answer may be asked for again
   */
  constructor(
    private readonly maxAttempts: number,
    limitMs: number,
    private readonly once: boolean,
  ) {
    this.deadline = Date.now() + limitMs;
  }

  /** Resolves when the request may be made again; throws the error where it may not, or the signal's when aborted. */
  async wait(error: unknown, signal?: AbortSignal): Promise<void> {
    if (!(error instanceof HopeRequestError)) throw error;
    this.failed += 1;
    const safe = error.repeatable || (this.once && error instanceof ConnectionLost);
    const waitMs = this.nextWaitMs(error.retryAfterMs ?? 0);
    if (!safe || this.failed >= this.maxAttempts || Date.now() + waitMs > this.deadline) throw error;
    await sleep(waitMs, signal);
  }

  // Doubles each time, and is spread so that many clients do not come back at the same moment.
  private nextWaitMs(askedMs: number): number {
    const grown = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** (this.failed - 1));
    return Math.max(grown * (0.5 + Math.random() / 2), askedMs);
  }
}

function sleep(waitMs: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const stop = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, waitMs);
    signal?.addEventListener("abort", stop, { once: true });
  });
}
