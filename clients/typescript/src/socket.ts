// A websocket whose frames can be awaited, one after the other. Knows no meaning of frames.

/** What this package needs of a websocket: that of browsers and Node, and that of the package `ws`. */
export interface WebSocketLike {
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  send(text: string): void;
  close(): void;
}

export type WebSocketConstructor = new (url: string, protocols: string[]) => WebSocketLike;

/** Thrown to whoever awaits a frame of a socket that is closed. */
export class Closed extends Error {
  constructor(
    readonly code: number,
    readonly reason: string,
  ) {
    super(`the websocket was closed (${code} ${reason})`);
  }
}

/** One open socket. Takes frames in however slowly they are read, so to the server no reader here is slow. */
export class Socket {
  /** Set once it is closed. */
  closed: Closed | undefined;
  private readonly frames: string[] = [];
  private wake: (() => void) | undefined;

  private constructor(private readonly socket: WebSocketLike) {
    socket.onmessage = (event) => {
      this.frames.push(String(event.data));
      this.wake?.();
    };
    socket.onclose = (event) => {
      this.closed = new Closed(event.code, event.reason);
      this.wake?.();
    };
  }

  /** Resolves when it is open; throws `Closed` when that fails. */
  static async open(
    kind: WebSocketConstructor,
    url: string,
    protocols: string[],
    timeoutMs: number,
  ): Promise<Socket> {
    const raw = new kind(url, protocols);
    const socket = new Socket(raw);
    // An error is followed by a close, which says more.
    raw.onerror = () => undefined;
    const timer = setTimeout(() => raw.close(), timeoutMs);
    try {
      await new Promise<void>((resolve, reject) => {
        raw.onopen = () => resolve();
        socket.wake = () => socket.closed !== undefined && reject(socket.closed);
      });
    } finally {
      clearTimeout(timer);
      socket.wake = undefined;
    }
    return socket;
  }

  /** The next frame; throws `Closed` when none will come. */
  async next(): Promise<string> {
    for (;;) {
      const frame = this.frames.shift();
      if (frame !== undefined) return frame;
      if (this.closed !== undefined) throw this.closed;
      await new Promise<void>((resolve) => {
        this.wake = resolve;
      });
    }
  }

  /** Does nothing once it is closed: `next` says so. */
  send(text: string): void {
    if (this.closed === undefined) this.socket.send(text);
  }

  close(): void {
    this.socket.close();
  }
}
