// Turns over a websocket: many on one socket, one at a time, and a new socket where one was lost.

import type { Session, TurnEvent, TurnFields } from "./contract.js";
import { type ErrorObject, Forbidden, fromEvent, HopeRequestError, ServerFailure, TooLarge } from "./errors.js";
import { Closed, Socket } from "./socket.js";
import { DEFAULT_TURN_TIMEOUT_MS, newKey, tell } from "./turns.js";
import { pathOf, type Wire } from "./wire.js";

const SUBPROTOCOL = "hope.v1";
const KEY_SUBPROTOCOL = "hope.key.";
const RESTARTING = 1012;
// Close codes after which the same again would end the same.
const FINAL_CLOSES = new Map<number, typeof HopeRequestError>([
  [1008, Forbidden],
  [1009, TooLarge],
  [1011, ServerFailure],
]);

const CANCEL = JSON.stringify({ type: "turn.cancel" });
const LAST = ["turn.completed", "turn.cancelled", "error"];

type Frame = { type: string; error?: ErrorObject; session?: Session };

/** How one turn over a socket is taken. */
export interface ConversationTurnOptions extends TurnFields {
  /**
   * The same key with the same turn returns the stored turn and learns nothing again. Made where it is left out; give
   * one to be able to ask again after this program itself was restarted.
   */
  idempotencyKey?: string;
}

/** One session's websocket. A socket that is lost, in a turn or between two, is opened again by the turn that needs it. */
export class Conversation {
  private socket: Socket | undefined;
  private greeted: Session | undefined;
  private turnRuns = false;
  private cancelAsked = false;

  private constructor(
    private readonly wire: Wire,
    private readonly sessionId: string,
  ) {}

  /** Use `HopeClient.stream`. */
  static async open(wire: Wire, sessionId: string): Promise<Conversation> {
    const conversation = new Conversation(wire, sessionId);
    const patience = wire.patience(wire.timeoutMs, true);
    while (conversation.socket === undefined) {
      await conversation.connect().catch((error: unknown) => patience.wait(error));
    }
    return conversation;
  }

  /** The session as it was when the socket was opened last. */
  get session(): Session {
    if (this.greeted === undefined) throw new Error("the socket was never open");
    return this.greeted;
  }

  /**
   * Say something and iterate over the events as they come, `turn.completed` or `turn.cancelled` last.
   *
   * The turn is asked for by the first step of the iteration; leaving the loop before the end cancels it.
   */
  async *turn(message: string, options: ConversationTurnOptions = {}): AsyncGenerator<TurnEvent, void> {
    if (this.turnRuns) throw new Error("a turn is still running here: iterate over it to its end, or cancel() it");
    const { idempotencyKey = newKey(), ...fields } = options;
    const frame = JSON.stringify({
      type: "turn.create",
      turn: { message, ...fields },
      idempotency_key: idempotencyKey,
    });
    const limitMs = turnLimitMs(fields, this.wire);
    this.turnRuns = true;
    this.cancelAsked = false;
    try {
      yield* tell({
        ask: (again) => this.ask(frame, again),
        cancelAsked: () => this.cancelAsked,
        patience: this.wire.patience(limitMs, true),
      });
    } finally {
      this.turnRuns = false;
    }
  }

  /** Stop the running turn; it then ends with `turn.cancelled` or, too late, `turn.completed`. */
  cancel(): void {
    if (!this.turnRuns || this.cancelAsked) return;
    this.cancelAsked = true;
    this.socket?.send(CANCEL);
  }

  /** Close the socket; a turn that runs is cancelled by that. */
  close(): void {
    this.cancelAsked = true;
    this.socket?.close();
    this.socket = undefined;
  }

  private async *ask(frame: string, again: boolean): AsyncGenerator<Frame, void> {
    // What the old socket still carries belongs to the attempt that failed.
    if (again) this.drop();
    if (this.socket === undefined || this.socket.closed !== undefined) await this.connect();
    this.socket?.send(frame);
    if (this.cancelAsked) this.socket?.send(CANCEL);
    let ended = false;
    try {
      while (!ended) {
        const event = await this.receive();
        ended = LAST.includes(event.type);
        yield event;
      }
    } finally {
      if (!ended) await this.leave();
    }
  }

  /** End a turn that nobody listens to any more, so that the socket is free for the next. */
  private async leave(): Promise<void> {
    if (this.socket === undefined || this.socket.closed !== undefined) return;
    this.cancel();
    try {
      while (!LAST.includes((await this.receive()).type)) continue;
    } catch {
      this.drop(); // the next turn opens another socket; losing this one has cancelled the turn
    }
  }

  private async connect(): Promise<void> {
    const { wire } = this;
    if (wire.WebSocket === undefined) {
      throw new TypeError("There is no WebSocket here; give one: new HopeClient(url, { WebSocket }), as from 'ws'.");
    }
    const url = `ws${wire.url.replace(/^http/, "")}${pathOf("sessions", this.sessionId, "stream")}`;
    const protocols = [SUBPROTOCOL, ...(wire.apiKey === undefined ? [] : [KEY_SUBPROTOCOL + wire.apiKey])];
    try {
      this.socket = await Socket.open(wire.WebSocket, url, protocols, wire.timeoutMs);
    } catch (error) {
      throw error instanceof Closed ? wire.nobody(error) : error;
    }
    const greeting = await this.receive();
    if (greeting.error !== undefined) {
      this.drop();
      throw fromEvent(greeting.error);
    }
    wire.met = true;
    this.greeted = greeting.session;
  }

  private async receive(): Promise<Frame> {
    if (this.socket === undefined) throw this.wire.lost("it was closed here");
    try {
      return JSON.parse(await this.socket.next()) as Frame;
    } catch (error) {
      throw error instanceof Closed ? this.meaning(error) : error;
    }
  }

  private drop(): void {
    this.socket?.close();
    this.socket = undefined;
  }

  private meaning(closed: Closed): HopeRequestError {
    this.socket = undefined;
    const final = FINAL_CLOSES.get(closed.code);
    if (final !== undefined) return new final(`The server closed the connection (${closed.code} ${closed.reason}).`);
    if (closed.code === RESTARTING) return this.wire.lost("the server is restarting", closed);
    return this.wire.lost(`it was closed (${closed.code} ${closed.reason})`, closed);
  }
}

/** How long a turn may take in all, waiting for a lost server included. */
export function turnLimitMs(fields: TurnFields, wire: Wire): number {
  const asked = fields.timeout_s === undefined ? DEFAULT_TURN_TIMEOUT_MS : fields.timeout_s * 1000;
  return asked + wire.timeoutMs;
}
