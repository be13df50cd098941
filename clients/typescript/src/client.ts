// The client: every route of the contract, for browsers and Node.

import type {
  Consolidation,
  Generation,
  Memory,
  Session,
  SessionDeleted,
  SetAside,
  Turn,
  TurnEvent,
  Version,
} from "./contract.js";
import { Conversation, type ConversationTurnOptions, turnLimitMs } from "./conversation.js";
import { newKey, tell } from "./turns.js";
import { type Call, type ClientOptions, pathOf, Wire } from "./wire.js";

const PAGE_SIZE = 100;
// The server answers a consolidation that is waited for after ten minutes, ended or not.
const CONSOLIDATION_WAIT_MS = 600_000;

/** A session, named by its id or by what the server sent of it. */
export type SessionRef = string | Session;

/** How one turn over HTTP is taken. */
export interface TurnOptions extends ConversationTurnOptions {
  /** Aborting hangs up, which cancels the turn. */
  signal?: AbortSignal;
}

interface Page<One> {
  data: One[];
  has_more: boolean;
}

/**
 * A server.
 *
 * What is safe to repeat is repeated when the server was lost or asked to wait: turns always, for each is asked with an
 * idempotency key.
 */
export class HopeClient {
  private readonly wire: Wire;

  constructor(url = "http://127.0.0.1:8000", options: ClientOptions = {}) {
    this.wire = new Wire(url, options);
  }

  /** Begin a session. One that contributes teaches the other sessions of its tenant. */
  createSession(
    fields: { id?: string; metadata?: Record<string, string>; contribute?: boolean } = {},
  ): Promise<Session> {
    return this.wire.call("POST", "/v1/sessions", { json: fields });
  }

  /** One session, as it is now. */
  session(session: SessionRef): Promise<Session> {
    return this.wire.call("GET", path(session), { once: true });
  }

  /** The key's sessions, fetched a page at a time. */
  sessions(options: { pageSize?: number } = {}): AsyncGenerator<Session, void> {
    return this.pages("/v1/sessions", options.pageSize);
  }

  /** Change metadata or whether the session contributes; what is left out stays. */
  updateSession(
    session: SessionRef,
    changes: { metadata?: Record<string, string>; contribute?: boolean },
  ): Promise<Session> {
    return this.wire.call("PATCH", path(session), { json: changes, once: true });
  }

  /** Erase a session and everything that belongs to it. */
  deleteSession(session: SessionRef): Promise<SessionDeleted> {
    return this.wire.call("DELETE", path(session));
  }

  /** Say something and wait for the whole reply; memory and transcript are durable when this resolves. */
  turn(session: SessionRef, message: string, options: TurnOptions = {}): Promise<Turn> {
    return this.wire.call("POST", path(session, "turns"), this.turnCall(message, options, false));
  }

  /**
   * As `turn`, but yields the events as they come, over Server-Sent Events; `turn.completed` is the last.
   *
   * Leaving the loop earlier hangs up, which cancels the turn.
   */
  turnEvents(session: SessionRef, message: string, options: TurnOptions = {}): AsyncGenerator<TurnEvent, void> {
    const { wire } = this;
    const call = this.turnCall(message, options, true);
    return tell({
      ask: () => wire.events(path(session, "turns"), call),
      cancelAsked: () => false,
      patience: wire.patience(turnLimitMs(options, wire), true),
      signal: options.signal,
    });
  }

  /** A conversation over a websocket; `close` it. */
  stream(session: SessionRef): Promise<Conversation> {
    return Conversation.open(this.wire, id(session));
  }

  /** The session's turns, oldest first, fetched a page at a time. */
  transcript(session: SessionRef, options: { pageSize?: number } = {}): AsyncGenerator<Turn, void> {
    return this.pages(path(session, "turns"), options.pageSize);
  }

  /** What the session's memory looks like from outside. */
  memory(session: SessionRef): Promise<Memory> {
    return this.wire.call("GET", path(session, "memory"), { once: true });
  }

  /** The versions of the session's memory that can be gone back to, newest first. */
  versions(session: SessionRef): Promise<Version[]> {
    return this.list(path(session, "versions"));
  }

  /** Go back to a version (0: nothing read yet); what came after it is undone. */
  rollback(session: SessionRef, version: number): Promise<Session> {
    return this.wire.call("POST", path(session, "rollback"), { json: { version } });
  }

  /** Begin a second session with the memory and transcript of this one, by default as they are now. */
  fork(session: SessionRef, fields: { version?: number; id?: string } = {}): Promise<Session> {
    return this.wire.call("POST", path(session, "fork"), { json: fields });
  }

  /** The whole session as a safetensors file. */
  exportSession(session: SessionRef): Promise<Uint8Array<ArrayBuffer>> {
    return this.wire.bytes(path(session, "export"), { once: true });
  }

  /** Begin a session from what `exportSession` returned. */
  importSession(file: Uint8Array<ArrayBuffer>, id?: string): Promise<Session> {
    const query = id === undefined ? "" : `?id=${encodeURIComponent(id)}`;
    return this.wire.call("POST", `/v1/sessions/import${query}`, { file });
  }

  /**
   * Have contributing sessions folded into a new generation (operator keys).
   *
   * `wait`: resolve once it has ended, or after ten minutes. `without`: a session, deleted or not: go back to before
   * the generations that learned from it.
   */
  consolidate(fields: { wait?: boolean; without?: string } = {}): Promise<Consolidation> {
    const limitMs = this.wire.timeoutMs + (fields.wait ? CONSOLIDATION_WAIT_MS : 0);
    return this.wire.call("POST", "/v1/consolidations", { json: fields, limitMs });
  }

  /** How a consolidation goes (operator keys). */
  consolidation(consolidationId: string): Promise<Consolidation> {
    return this.wire.call("GET", pathOf("consolidations", consolidationId), { once: true });
  }

  /** The last hundred consolidations, newest first (operator keys). */
  consolidations(): Promise<Consolidation[]> {
    return this.list("/v1/consolidations");
  }

  /** The generations that are kept, newest first; 0 is the checkpoint alone (operator keys). */
  generations(): Promise<Generation[]> {
    return this.list("/v1/generations");
  }

  /** Make a generation the active one, for all sessions from their next turn on (operator keys). */
  activateGeneration(generation: number): Promise<Generation> {
    return this.wire.call("POST", pathOf("generations", generation, "activate"), { once: true });
  }

  /** The sessions that spoiled candidates for a generation, latest first (operator keys). */
  quarantine(): Promise<SetAside[]> {
    return this.list("/v1/quarantine");
  }

  /** Have a session in quarantine tried again (operator keys). */
  letOut(session: SessionRef): Promise<void> {
    return this.wire.call("DELETE", pathOf("quarantine", id(session)), { once: true });
  }

  private turnCall(message: string, options: TurnOptions, stream: boolean): Call {
    const { idempotencyKey = newKey(), signal, ...fields } = options;
    return {
      json: { message, stream, ...fields },
      headers: { "Idempotency-Key": idempotencyKey },
      once: true,
      limitMs: turnLimitMs(fields, this.wire),
      signal,
    };
  }

  private async list<One>(route: string): Promise<One[]> {
    return (await this.wire.call<Page<One>>("GET", route, { once: true })).data;
  }

  private async *pages<One extends { id: string }>(route: string, pageSize = PAGE_SIZE): AsyncGenerator<One, void> {
    let after = "";
    for (;;) {
      const page = await this.wire.call<Page<One>>("GET", `${route}?limit=${pageSize}${after}`, { once: true });
      yield* page.data;
      const last = page.data.at(-1);
      if (!page.has_more || last === undefined) return;
      after = `&after=${encodeURIComponent(last.id)}`;
    }
  }
}

function id(session: SessionRef): string {
  return typeof session === "string" ? session : session.id;
}

function path(session: SessionRef, ...more: string[]): string {
  return pathOf("sessions", id(session), ...more);
}
