// The live server that the tests are run against, and a way to it that breaks when told to.
//
// HOPE_URL says where it listens; HOPE_API_KEY is a key of role operator that it knows.

import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";
import { randomUUID } from "node:crypto";
import { WebSocket as WebSocketOfWs } from "ws";
import { type ClientOptions, HopeClient, type Turn, type TurnEvent, type WebSocketConstructor } from "hope-client";

export const URL_OF_SERVER = needed("HOPE_URL");
export const API_KEY = needed("HOPE_API_KEY");

/** The websockets of this runtime: Node's own where it has one, and that of the package `ws`. */
export const WEBSOCKETS: [string, WebSocketConstructor][] = [
  ["ws", WebSocketOfWs],
  ...(globalThis.WebSocket === undefined ? [] : ([["global", globalThis.WebSocket]] as [string, WebSocketConstructor][])),
];

export function client(url = URL_OF_SERVER, options: ClientOptions = {}): HopeClient {
  return new HopeClient(url, { apiKey: API_KEY, WebSocket: WebSocketOfWs, timeoutMs: 10_000, ...options });
}

export function newId(): string {
  return `ts-${randomUUID()}`;
}

export async function all<One>(source: AsyncIterable<One>): Promise<One[]> {
  const found: One[] = [];
  for await (const one of source) found.push(one);
  return found;
}

/** The turn that a stream ended with. */
export function completed(events: TurnEvent[]): Turn {
  const last = events.at(-1);
  if (last?.type !== "turn.completed") throw new Error(`the stream ended with ${last?.type}`);
  return last.turn;
}

/** What a reader has seen of the reply at the end. */
export function seen(events: TurnEvent[]): string {
  return events.reduce((text, event) => {
    if (event.type === "turn.restarted") return "";
    return event.type === "turn.token" ? text + event.text : text;
  }, "");
}

/** A TCP proxy to the server that cuts both ends at a word in its answer, before any of it is forwarded. */
export class Cutting {
  private constructor(
    readonly url: string,
    /** What to cut at, each used up once. */
    readonly cutAt: string[],
    private readonly open: Set<Socket>,
    private readonly server: Server,
  ) {}

  static async open(...cutAt: string[]): Promise<Cutting> {
    const { hostname, port } = new URL(URL_OF_SERVER);
    const open = new Set<Socket>();
    const server = createServer((near) => {
      const far = connect(Number(port), hostname);
      for (const end of [near, far]) {
        open.add(end);
        // That one end was faster is no failure of a way.
        end.on("error", () => end.destroy());
      }
      near.on("data", (asked) => far.write(asked)).on("close", () => far.destroy());
      far.on("data", (said) => {
        if (cutAt[0] !== undefined && said.includes(cutAt[0])) {
          cutAt.shift();
          near.destroy();
          far.destroy();
        } else near.write(said);
      });
      far.on("close", () => near.end());
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return new Cutting(`http://127.0.0.1:${(server.address() as AddressInfo).port}`, cutAt, open, server);
  }

  /** Cuts every connection now. */
  breakAll(): void {
    for (const end of this.open) end.destroy();
  }

  close(): void {
    this.server.close();
    this.breakAll();
  }
}

function needed(name: string): string {
  const value = process.env[name];
  if (!value) throw new Error(`set ${name}: these tests talk to a live server`);
  return value;
}
