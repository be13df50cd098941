// How requests travel over HTTP, made again where that is safe. Knows no route.
//
// Every failure leaves here as one of the errors of this package, but for a caller's own abort.

import { ConnectionLost, type ErrorObject, fromAnswer, HopeRequestError, Unreachable } from "./errors.js";
import { Patience } from "./retry.js";
import type { WebSocketConstructor } from "./socket.js";

// Of a proxy that got no answer from the server behind it.
const BAD_GATEWAYS = [502, 503, 504];
// Said by Node before any of a request was sent; a browser does not say.
const NEVER_SENT = ["ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN", "EHOSTUNREACH", "UND_ERR_CONNECT_TIMEOUT"];

/** How the client itself behaves; every field has a default. */
export interface ClientOptions {
  /** Sent with everything, where the server asks for keys. */
  apiKey?: string | undefined;
  /** Of one answer (a turn has its own `timeout_s` beside it), and of opening a websocket; 30,000 by default. */
  timeoutMs?: number;
  /** How often a request is made in all, 8 by default; 1 never repeats. */
  maxAttempts?: number;
  /** Used instead of the global one. */
  fetch?: typeof globalThis.fetch;
  /** Used instead of the global one, which Node has since version 22; before, give it the one of the package `ws`. */
  WebSocket?: WebSocketConstructor;
}

/** One request. */
export interface Call {
  /** What becomes JSON. */
  json?: unknown;
  /** What is sent as it is. */
  file?: Uint8Array<ArrayBuffer>;
  headers?: Record<string, string>;
  /** Asking twice does no more than asking once, so it is repeated when the answer is lost. */
  once?: boolean;
  /** How long the answer may take; by default the client's timeout. */
  limitMs?: number;
  signal?: AbortSignal | undefined;
}

/** A server's address, and the way there. */
export class Wire {
  readonly url: string;
  readonly apiKey: string | undefined;
  readonly timeoutMs: number;
  readonly WebSocket: WebSocketConstructor | undefined;
  /** Patience is for a server that went away. One that never answered may not be there at all. */
  met = false;
  private readonly maxAttempts: number;
  private readonly fetch: typeof globalThis.fetch;

  constructor(url: string, options: ClientOptions) {
    this.url = url.replace(/\/+$/, "");
    this.apiKey = options.apiKey;
    this.timeoutMs = options.timeoutMs ?? 30_000;
    this.maxAttempts = options.maxAttempts ?? 8;
    this.fetch = options.fetch ?? globalThis.fetch.bind(globalThis);
    this.WebSocket = options.WebSocket ?? (globalThis.WebSocket as WebSocketConstructor | undefined);
  }

  patience(limitMs: number, once: boolean): Patience {
    return new Patience(this.maxAttempts, limitMs, once);
  }

  /** The JSON that answers. */
  async call<Result>(method: string, path: string, call: Call = {}): Promise<Result> {
    const response = await this.answer(method, path, call);
    const answer = await this.reaching(call.signal, () => response.text());
    try {
      return JSON.parse(answer) as Result;
    } catch {
      throw this.stranger(response);
    }
  }

  /** The bytes that answer. */
  async bytes(path: string, call: Call): Promise<Uint8Array<ArrayBuffer>> {
    const response = await this.answer("GET", path, call);
    return new Uint8Array(await this.reaching(call.signal, () => response.arrayBuffer()));
  }

  /** Server-Sent Events as they come, until the end mark; hangs up when left earlier. One attempt. */
  async *events(path: string, call: Call): AsyncGenerator<unknown, void> {
    const leaving = new AbortController();
    const signal = call.signal ? AbortSignal.any([call.signal, leaving.signal]) : leaving.signal;
    try {
      const response = await this.attempt("POST", path, { ...call, signal });
      if (response.body === null) throw this.lost("it has no body");
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await this.reaching(call.signal, () => reader.read());
        if (done) throw this.lost("it ended in the middle of a turn");
        const lines = (rest + value).split("\n");
        rest = lines.pop() ?? "";
        for (const line of lines) {
          if (line === "data: [DONE]") return;
          if (line.startsWith("data: ")) yield JSON.parse(line.slice("data: ".length));
        }
      }
    } finally {
      leaving.abort();
    }
  }

  /** Nobody took the request. */
  nobody(cause: unknown): Unreachable {
    return new Unreachable(`No server answers at ${this.url}.`, { repeatable: this.met, cause });
  }

  /** The request was made and the answer got lost. */
  lost(how: string, cause?: unknown): ConnectionLost {
    return new ConnectionLost(`The connection to ${this.url} was lost: ${how}.`, { cause });
  }

  private async answer(method: string, path: string, call: Call): Promise<Response> {
    const patience = this.patience(call.limitMs ?? this.timeoutMs, call.once ?? false);
    for (;;) {
      try {
        return await this.attempt(method, path, call);
      } catch (error) {
        await patience.wait(error, call.signal);
      }
    }
  }

  private async attempt(method: string, path: string, call: Call): Promise<Response> {
    const limit = AbortSignal.timeout(call.limitMs ?? this.timeoutMs);
    const headers = new Headers(call.headers);
    if (this.apiKey !== undefined) headers.set("Authorization", `Bearer ${this.apiKey}`);
    if (call.json !== undefined) headers.set("Content-Type", "application/json");
    const request: RequestInit = {
      method,
      headers,
      signal: call.signal ? AbortSignal.any([call.signal, limit]) : limit,
      body: call.file ?? (call.json === undefined ? null : JSON.stringify(call.json)),
    };
    const response = await this.reaching(call.signal, () => this.fetch(this.url + path, request));
    if (!response.ok) throw await this.refusal(response, call.signal);
    this.met = true;
    return response;
  }

  /** Failures to reach the server become ours; a caller's abort stays what it is. */
  private async reaching<Result>(signal: AbortSignal | undefined, work: () => Promise<Result>): Promise<Result> {
    try {
      return await work();
    } catch (error) {
      signal?.throwIfAborted();
      if (error instanceof HopeRequestError) throw error;
      const name = error instanceof Error ? error.name : "";
      if (name === "TimeoutError") throw this.lost("no answer came in time", error);
      const cause = error instanceof Error ? (error.cause as { code?: string; message?: string } | undefined) : undefined;
      // Where the runtime does not say what went wrong, a server that has never answered is taken for none.
      const nobody = cause?.code === undefined ? !this.met : NEVER_SENT.includes(cause.code);
      throw nobody ? this.nobody(error) : this.lost(cause?.message || String(error), error);
    }
  }

  private async refusal(response: Response, signal: AbortSignal | undefined): Promise<HopeRequestError> {
    const text = await this.reaching(signal, () => response.text());
    const error = errorObject(text);
    if (error === undefined) return this.stranger(response);
    this.met = true;
    return fromAnswer(response.status, response.headers, error);
  }

  private stranger(response: Response): HopeRequestError {
    const { status } = response;
    if (BAD_GATEWAYS.includes(status)) return this.lost(`a proxy got no answer (status ${status})`);
    const message = `What answers at ${this.url} is no Hope server (status ${status}).`;
    return new Unreachable(message, { status, repeatable: false });
  }
}

/** A route under /v1; whatever an id holds, it stays one part of the path. */
export function pathOf(...parts: (string | number)[]): string {
  return ["/v1", ...parts.map(encodeURIComponent)].join("/");
}

function errorObject(text: string): ErrorObject | undefined {
  try {
    const found = (JSON.parse(text) as { error?: ErrorObject }).error;
    return typeof found?.message === "string" && typeof found.code === "string" ? found : undefined;
  } catch {
    return undefined;
  }
}
